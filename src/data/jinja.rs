//! A Jinja environment that behaves like the one in which transformers renders chat templates:
//! what minijinja leaves out, or does otherwise than Jinja2 over Python values.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::python;

/// The environment, without templates.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    env.set_syntax(syntax.build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(python::formatter);
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", python::to_json);
    env.add_filter("string", python::text);
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("escape", escape);
    env.add_filter("e", escape);
    env.add_test("iterable", |v: &Value| {
        is_container(v) || v.kind() == ValueKind::Iterable
    });
    env.add_test("sequence", is_container);
    env.add_test("callable", |v: &Value| v.kind() == ValueKind::Plain);
    env.add_function("strftime_now", python::strftime_now);
    env.add_function("raise_exception", raise_exception);
    env.add_function("dict", dict);
    env.add_function("namespace", namespace);
    Ok(env)
}

/// Jinja2 treats an undefined value as an empty list, and texts and mappings as sequences.
fn is_container(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), Seq | Map | String | Undefined)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(invalid(format!("raised: {message}")))
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `default(value, default_value='', boolean=false)`.
fn default(value: &Value, positional: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let argument = |index: usize, name: &str| match positional.get(index) {
        Some(value) => Ok(Some(value.clone())),
        None => named.get::<Option<Value>>(name),
    };
    let other = argument(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let falsy = argument(1, "boolean")?.is_some_and(|v| v.is_true());
    named.assert_all_used()?;
    Ok(match value.is_undefined() || falsy && !value.is_true() {
        true => other,
        false => value.clone(),
    })
}

/// As MarkupSafe escapes.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for c in python::text(value).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// The entries of an optional mapping and of the named arguments, the latter winning.
fn entries(base: &[Value], named: &Kwargs) -> Result<Vec<(Value, Value)>, Error> {
    let mut entries: Vec<(Value, Value)> = Vec::new();
    match base {
        [] => {}
        [base] => {
            for key in base.try_iter()? {
                entries.push((key.clone(), base.get_item(&key)?));
            }
        }
        _ => return Err(Error::from(ErrorKind::TooManyArguments)),
    }
    for name in named.args() {
        entries.push((Value::from(name), named.get(name)?));
    }
    Ok(entries)
}

fn dict(base: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    Ok(Value::from_pairs(entries(&base, &named)?))
}

fn namespace(base: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let entries = entries(&base, &named)?;
    let hidden = |(key, _): &&(Value, Value)| key.as_str().is_some_and(|k| k.starts_with('_'));
    if let Some((key, _)) = entries.iter().find(hidden) {
        return Err(invalid(format!(
            "a namespace cannot hold {key}: the underscore is reserved"
        )));
    }
    let defaults = Value::from_pairs(entries);
    minijinja::functions::namespace(Some(defaults.into()))
}

/// Methods of Python's texts and lists that chat templates may call; the rest are pycompat's.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => text_method(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Seq if name == "index" => {
            let position = value.try_iter()?.position(|v| Some(&v) == args.first());
            let position = position.ok_or_else(|| invalid("the value is not in the list"))?;
            Some(Value::from(position))
        }
        _ => None,
    };
    match found {
        Some(value) => Ok(value),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn text_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let argument = |i: usize| args.get(i).and_then(Value::as_str);
    let width = || args.first().and_then(Value::as_usize).unwrap_or(0);
    let missing = width().saturating_sub(text.chars().count());
    // Positions count characters, not bytes.
    let position = |byte: Option<usize>| byte.map(|b| text[..b].chars().count() as i64);
    let triple = |a: &str, b: &str, c: &str| {
        let parts = [a, b, c].map(Value::from);
        Value::from_object(Tuple::from(parts.to_vec()))
    };
    let value = match (name, argument(0), args.len()) {
        ("removeprefix", Some(prefix), 1) => Value::from(text.strip_prefix(prefix).unwrap_or(text)),
        ("removesuffix", Some(suffix), 1) => Value::from(text.strip_suffix(suffix).unwrap_or(text)),
        ("partition", Some(separator), 1) => match text.split_once(separator) {
            Some((before, after)) => triple(before, separator, after),
            None => triple(text, "", ""),
        },
        ("rpartition", Some(separator), 1) => match text.rsplit_once(separator) {
            Some((before, after)) => triple(before, separator, after),
            None => triple("", "", text),
        },
        ("rsplit", Some(separator), 1 | 2) => {
            let limit = args.get(1).and_then(Value::as_usize);
            let limit = limit.map_or(usize::MAX, |n| n.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(limit, separator).collect();
            parts.reverse();
            parts.into_iter().map(Value::from).collect()
        }
        ("find", Some(part), 1) => Value::from(position(text.find(part)).unwrap_or(-1)),
        ("rfind", Some(part), 1) => Value::from(position(text.rfind(part)).unwrap_or(-1)),
        ("index", Some(part), 1) => position(text.find(part))
            .map(Value::from)
            .ok_or_else(|| invalid("substring not found"))?,
        ("rindex", Some(part), 1) => position(text.rfind(part))
            .map(Value::from)
            .ok_or_else(|| invalid("substring not found"))?,
        ("swapcase", None, 0) => text
            .chars()
            .flat_map(|c| match c.is_uppercase() {
                true => c.to_lowercase().collect::<Vec<_>>(),
                false => c.to_uppercase().collect(),
            })
            .collect::<String>()
            .into(),
        ("zfill", None, 1) => {
            let digits = text.trim_start_matches(['+', '-']);
            let sign = &text[..text.len() - digits.len()];
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        ("ljust", None, 1) => Value::from(format!("{text}{}", " ".repeat(missing))),
        ("rjust", None, 1) => Value::from(format!("{}{text}", " ".repeat(missing))),
        _ => return Ok(None),
    };
    Ok(Some(value))
}
