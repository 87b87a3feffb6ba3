//! `sft export`: a model or checkpoint folder as a Hugging Face folder of another number format.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use sft::Result;
use sft::dtype::DType;
use sft::io::WeightFiles;
use sft::model::{ModelSpec, ParamTable, save_model_folder};

use crate::console;

#[derive(clap::Args)]
pub struct Args {
    /// The model or checkpoint folder
    model: PathBuf,
    /// The folder to write
    folder: PathBuf,
    /// The number format of the weights
    #[arg(long, value_enum, default_value_t = Format::Bfloat16)]
    dtype: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Float32,
    Float16,
    Bfloat16,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let dtype = match args.dtype {
        Format::Float32 => DType::F32,
        Format::Float16 => DType::F16,
        Format::Bfloat16 => DType::BF16,
    };
    let spec = ModelSpec::from_dir(&args.model)?;
    let table = ParamTable::new(&spec);
    let files = WeightFiles::open(&args.model)?;
    // One tensor at a time: (name, values).
    let mut tensor = (String::new(), Vec::new());
    save_model_folder(
        &args.folder,
        &args.model,
        &spec,
        &table,
        &dtype.into(),
        |param, start, chunk| {
            if tensor.0 != param.name {
                tensor.1.resize(param.len(), 0.0);
                files.read_f32(&param.name, &param.shape, &mut tensor.1)?;
                tensor.0.clone_from(&param.name);
            }
            chunk.copy_from_slice(&tensor.1[start..start + chunk.len()]);
            Ok(())
        },
    )?;
    console::line(&format!(
        "Wrote {dtype} weights to {}",
        args.folder.display()
    ));
    Ok(ExitCode::SUCCESS)
}
