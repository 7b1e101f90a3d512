//! The functions of Helm that the templates use.

use gtmpl_ng::{Func, FuncError, NumberKind, Value as Data};
use serde_json::{Map, Value};

use crate::yaml;

/// By the names that templates use.
pub(crate) const FUNCTIONS: [(&str, Func); 3] =
    [("quote", quote), ("toYaml", to_yaml), ("nindent", nindent)];

/// `VALUE | quote`: in double quotes.
fn quote(args: &[Data]) -> Result<Data, FuncError> {
    let [value] = args else {
        return Err(FuncError::ExactlyXArgs("quote".to_owned(), 1));
    };
    let text = match value {
        Data::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(Data::from(yaml::quoted(&text)))
}

/// `toYaml VALUE`: in block style, without the last line break.
fn to_yaml(args: &[Data]) -> Result<Data, FuncError> {
    let [value] = args else {
        return Err(FuncError::ExactlyXArgs("toYaml".to_owned(), 1));
    };
    Ok(Data::from(yaml::block(&plain(value)?)))
}

/// `TEXT | nindent N`: on a new line, with every line moved in by N blanks.
fn nindent(args: &[Data]) -> Result<Data, FuncError> {
    let [Data::Number(count), Data::String(text)] = args else {
        return Err(FuncError::Generic(
            "nindent takes a number and a text".to_owned(),
        ));
    };
    let count = count.as_u64().and_then(|count| usize::try_from(count).ok());
    let count = count
        .filter(|count| *count <= 64)
        .ok_or_else(|| FuncError::Generic("nindent moves in by 64 at most".to_owned()))?;
    let blanks = " ".repeat(count);
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| format!("{blanks}{line}"))
        .collect();
    Ok(Data::from(format!("\n{}", lines.join("\n"))))
}

/// A value for templates.
pub(crate) fn data(value: &Value) -> Data {
    match value {
        Value::Null => Data::Nil,
        Value::Bool(value) => Data::from(*value),
        Value::String(text) => Data::from(text.as_str()),
        Value::Number(number) => {
            let whole = number.as_i64().map(Data::from);
            let whole = whole.or_else(|| number.as_u64().map(Data::from));
            whole.unwrap_or_else(|| Data::from(number.as_f64().unwrap_or_default()))
        }
        Value::Array(list) => Data::Array(list.iter().map(data).collect()),
        Value::Object(map) => Data::Map(
            map.iter()
                .map(|(key, value)| (key.clone(), data(value)))
                .collect(),
        ),
    }
}

/// A value of templates, back again.
fn plain(data: &Data) -> Result<Value, FuncError> {
    Ok(match data {
        Data::NoValue | Data::Nil => Value::Null,
        Data::Bool(value) => (*value).into(),
        Data::String(text) => text.as_str().into(),
        Data::Number(number) => match number.kind() {
            NumberKind::Signed(number) => number.into(),
            NumberKind::Unsigned(number) => number.into(),
            NumberKind::Float(number) => number.into(),
        },
        Data::Array(list) => list
            .iter()
            .map(plain)
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        Data::Map(map) | Data::Object(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| Ok((key.clone(), plain(value)?)));
            entries.collect::<Result<Map<_, _>, FuncError>>()?.into()
        }
        Data::Function(_) => {
            return Err(FuncError::Generic("a function is no YAML".to_owned()));
        }
    })
}
