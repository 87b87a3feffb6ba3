//! What the rows of a log say about a run: its updates and evaluations as the run reported them, and
//! where its stop rules stand.

use serde_json::Value;
use sft::Result;
use sft::config::Config;
use sft::report::{EvalReport, EvalSetReport, Snapshot, StepReport, StopReason};
use sft::stop::replay::read_log;
use sft::stop::{Budget, Observation, RuleStatus, StopConfig, StopMachine};

/// A run as far as its log tells.
pub struct View {
    machine: StopMachine,
    /// Update, epoch, tokens and seconds of the last row.
    standing: Snapshot,
    /// The last update and the last evaluation.
    pub update: Option<StepReport>,
    pub evaluation: Option<EvalReport>,
    /// Losses of all updates.
    pub losses: Vec<f64>,
    /// The last row, once the run has ended.
    pub end: Option<End>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub snapshot: Snapshot,
    /// The reason as the row has it, which may be one that this version does not know.
    pub code: String,
    pub detail: String,
}

/// What a row brings.
#[derive(Debug, PartialEq)]
pub enum News {
    Update(StepReport),
    Evaluation(EvalReport),
    End,
    /// A row that says nothing about the run's course.
    Nothing,
}

impl View {
    /// A run that has no row yet, under the rules of `config`; without one, those that are always in
    /// force.
    ///
    /// # Errors
    /// As [`StopConfig::validate`].
    pub fn new(config: Option<&Config>) -> Result<Self> {
        let (stop, budget) = match config {
            Some(config) => (config.stop_rules()?, config.budget()),
            None => (StopConfig::default(), Budget::default()),
        };
        let mut machine = StopMachine::new(&stop, budget)?;
        if let Some((metric, direction)) = config.map(Config::best_metric).transpose()?.flatten() {
            machine.watch(metric, direction);
        }
        Ok(Self {
            machine,
            standing: Snapshot::default(),
            update: None,
            evaluation: None,
            losses: Vec::new(),
            end: None,
        })
    }

    /// Takes in one line of the log.
    ///
    /// # Errors
    /// As [`read_log`], for a line that is no row.
    pub fn take_in(&mut self, line: &str) -> Result<News> {
        let rows = read_log(line)?;
        // What `read_log` took is JSON; bare words for numbers that are not finite are no concern here.
        let row: Value = serde_json::from_str(line).unwrap_or(Value::Null);
        let tokens_before = self.standing.total_tokens;
        self.stand(&row);
        if let Some(code) = row["stop_reason"].as_str() {
            self.end = Some(End {
                snapshot: Snapshot {
                    best_step: row["best_step"].as_u64(),
                    best_value: number(&row, "best_value"),
                    stop_reason: serde_json::from_value::<StopReason>(code.into()).ok(),
                    ..self.standing.clone()
                },
                code: code.to_owned(),
                detail: row["stop_detail"].as_str().unwrap_or_default().to_owned(),
            });
            return Ok(News::End);
        }
        // An evaluation before the first update is a look at the untouched model.
        for row in rows.iter().filter(|row| row.step > 0) {
            // Rows that follow a verdict are those of a run that went on.
            self.machine.clear_verdict();
            let host = &row.metrics;
            let now = self.now(host);
            self.machine.observe(&now);
        }
        if let Some(update) = update(&row, tokens_before) {
            self.losses.push(update.loss);
            self.update = Some(update.clone());
            return Ok(News::Update(update));
        }
        if let Some(evaluation) = evaluation(&row) {
            self.evaluation = Some(evaluation.clone());
            return Ok(News::Evaluation(evaluation));
        }
        Ok(News::Nothing)
    }

    fn stand(&mut self, row: &Value) {
        let now = &mut self.standing;
        now.step = row["step"].as_u64().unwrap_or(now.step);
        now.epoch = number(row, "epoch").unwrap_or(now.epoch);
        now.total_tokens = row["num_tokens"].as_u64().unwrap_or(now.total_tokens);
        now.elapsed_seconds = number(row, "elapsed_seconds").unwrap_or(now.elapsed_seconds);
    }

    fn now<'a>(&self, host: &'a [(String, f64)]) -> Observation<'a> {
        Observation {
            step: self.standing.step,
            epoch: self.standing.epoch,
            tokens: self.standing.total_tokens,
            seconds: self.standing.elapsed_seconds,
            host,
            ..Observation::default()
        }
    }

    /// The step and value of the best so far.
    pub fn best(&self) -> Option<(u64, f64)> {
        let best = self.machine.best()?;
        Some((best.step?, best.value))
    }

    /// Where every rule stands.
    pub fn rules(&self) -> Vec<RuleStatus> {
        self.machine.status(&self.now(&[]))
    }
}

/// A number of a row; one that is not finite is a word there.
fn number(row: &Value, key: &str) -> Option<f64> {
    match &row[key] {
        Value::String(word) => word.parse().ok(),
        value => value.as_f64(),
    }
}

fn update(row: &Value, tokens_before: u64) -> Option<StepReport> {
    let nan = |key: &str| number(row, key).unwrap_or(f64::NAN);
    let total_tokens = row["num_tokens"].as_u64().unwrap_or(tokens_before);
    let tokens = total_tokens.saturating_sub(tokens_before);
    let seconds = tokens as f64 / nan("tokens_per_second");
    Some(StepReport {
        step: row["step"].as_u64()?,
        epoch: number(row, "epoch").unwrap_or(0.0),
        loss: number(row, "loss")?,
        smoothed_loss: number(row, "smoothed_loss"),
        grad_norm: nan("grad_norm"),
        learning_rate: nan("learning_rate"),
        token_accuracy: nan("mean_token_accuracy"),
        entropy: nan("entropy"),
        supervised_tokens: row["supervised_tokens"].as_u64().unwrap_or(0),
        tokens,
        total_tokens,
        model_flops: (nan("model_flops_per_second") * seconds) as u64,
        seconds,
        eval: None,
        stop_reason: None,
        loss_scale: number(row, "loss_scale"),
        skipped_updates: row["skipped_updates"].as_u64().unwrap_or(0),
    })
}

fn evaluation(row: &Value) -> Option<EvalReport> {
    let nan = |key: &str| number(row, key).unwrap_or(f64::NAN);
    let sets = row.as_object()?.keys().filter_map(|key| {
        let name = key.strip_prefix("eval_")?.strip_suffix("_loss")?;
        Some(EvalSetReport {
            name: name.to_owned(),
            loss: nan(key),
            token_accuracy: nan(&format!("eval_{name}_mean_token_accuracy")),
            // The log has these for all sets together only.
            entropy: f64::NAN,
            supervised_tokens: 0,
            tokens: 0,
            seconds: f64::NAN,
        })
    });
    Some(EvalReport {
        step: row["step"].as_u64()?,
        loss: number(row, "eval_loss")?,
        token_accuracy: nan("eval_mean_token_accuracy"),
        entropy: nan("eval_entropy"),
        supervised_tokens: row["eval_supervised_tokens"].as_u64().unwrap_or(0),
        tokens: row["eval_num_tokens"].as_u64().unwrap_or(0),
        seconds: nan("eval_runtime"),
        sets: sets.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(yaml: &str) -> View {
        let config = Config::from_yaml_str(yaml, "run.yaml").unwrap();
        View::new(Some(&config)).unwrap()
    }

    const UPDATE: &str = r#"{"step":2,"epoch":0.5,"loss":1.5,"grad_norm":"inf","learning_rate":0.001,
        "mean_token_accuracy":0.25,"num_tokens":300,"supervised_tokens":80,"tokens_per_second":50.0,
        "elapsed_seconds":7.5}"#;

    fn line(text: &str) -> String {
        text.replace('\n', "")
    }

    #[test]
    fn an_update_is_what_the_run_reported() {
        let mut view = view("max_steps: 4");
        view.take_in(r#"{"step":1,"loss":"nan","num_tokens":200}"#)
            .unwrap();
        assert!(view.losses[0].is_nan());
        let News::Update(report) = view.take_in(&line(UPDATE)).unwrap() else {
            panic!("no update");
        };
        assert_eq!(
            (report.step, report.loss, report.grad_norm),
            (2, 1.5, f64::INFINITY)
        );
        assert_eq!(
            (report.tokens, report.total_tokens, report.seconds),
            (100, 300, 2.0)
        );
        assert_eq!(view.best(), None, "not beside an infinite gradient");
        let budget = view.rules().pop().unwrap();
        assert_eq!((budget.rule, budget.current), ("budget", Some(2.0)));
    }

    #[test]
    fn evaluations_move_the_rules_but_not_one_before_the_first_update() {
        let mut view = view("stop: [{rule: plateau, patience: 3}]\neval_strategy: steps");
        view.take_in(r#"{"step":0,"eval_loss":0.5}"#).unwrap();
        assert_eq!(view.best(), None);
        let news = view
            .take_in(r#"{"step":2,"eval_loss":1.0,"eval_math_loss":2.0}"#)
            .unwrap();
        let News::Evaluation(report) = news else {
            panic!("no evaluation");
        };
        assert_eq!((report.step, report.loss, report.sets.len()), (2, 1.0, 1));
        assert_eq!(
            (&report.sets[0].name[..], report.sets[0].loss),
            ("math", 2.0)
        );
        view.take_in(r#"{"step":4,"eval_loss":1.5}"#).unwrap();
        assert_eq!(view.best(), Some((2, 1.0)));
        let plateau = view.rules().into_iter().find(|rule| rule.rule == "plateau");
        assert_eq!(plateau.unwrap().counter, 1);
    }

    #[test]
    fn the_last_row_says_why() {
        let mut view = view("max_steps: 4");
        view.take_in(&line(UPDATE)).unwrap();
        let row = r#"{"step":2,"epoch":0.5,"num_tokens":300,"stop_reason":"cancelled","stop_detail":"x",
            "best_step":1,"best_value":"inf"}"#;
        assert_eq!(view.take_in(&line(row)).unwrap(), News::End);
        let end = view.end.unwrap();
        assert_eq!(end.snapshot.stop_reason, Some(StopReason::Cancelled));
        assert_eq!((end.snapshot.elapsed_seconds, &end.detail[..]), (7.5, "x"));
        assert_eq!(end.snapshot.best_value, Some(f64::INFINITY));
    }

    #[test]
    fn a_line_that_is_no_row_is_refused() {
        let mut view = View::new(None).unwrap();
        assert!(view.take_in("{\"step\": 1, \"lo").is_err());
        assert_eq!(view.take_in("").unwrap(), News::Nothing);
        assert_eq!(view.take_in(r#"{"note": "x"}"#).unwrap(), News::Nothing);
    }
}
