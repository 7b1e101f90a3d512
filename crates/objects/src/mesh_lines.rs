//! What a MeshConfig says of waypoints' lines for requests and connections: `accessLogFile`,
//! `accessLogEncoding` and `accessLogFormat`.

use isobar_route::{JSON_LINE, LogForm};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::mesh_config::MeshConfig;

/// The only place that lines go to.
const OUTPUT: &str = "/dev/stdout";

/// Words for how lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LineEncoding {
    /// As text.
    #[default]
    Text,
    /// As JSON objects.
    Json,
}

/// What is wanted of waypoints' lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WaypointLines {
    /// Nothing: they are written as waypoints do by themselves.
    #[default]
    Usual,
    /// That there are none.
    Off,
    /// This text, in Envoy's words.
    Text(String),
    /// Objects of these names and texts.
    Json(Vec<(String, String)>),
}

impl MeshConfig {
    /// What it wants of waypoints' lines.
    #[must_use]
    pub fn lines(&self) -> WaypointLines {
        self.read_lines().0
    }

    /// The same, and what of it is not honoured: fields, each with a sentence.
    pub(crate) fn read_lines(&self) -> (WaypointLines, Vec<(&'static str, String)>) {
        let mut told = Vec::new();
        match self.access_log_file.as_deref() {
            Some("") => return (WaypointLines::Off, told),
            None | Some(OUTPUT) => {}
            Some(_) => told.push((
                "accessLogFile",
                format!("files: waypoints write to their standard output ({OUTPUT})"),
            )),
        }
        let format = self.access_log_format.as_deref().unwrap_or_default();
        let encoding = self.access_log_encoding.unwrap_or_default();
        let lines = match (encoding, format) {
            (LineEncoding::Text, "") => Ok(WaypointLines::Usual),
            (LineEncoding::Text, text) => {
                LogForm::text(text).map(|_| WaypointLines::Text(text.to_owned()))
            }
            (LineEncoding::Json, "") => {
                let all = JSON_LINE.iter();
                let all = all.map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
                Ok(WaypointLines::Json(all.collect()))
            }
            (LineEncoding::Json, text) => json(text),
        };
        let lines = lines.unwrap_or_else(|error| {
            told.push((
                "accessLogFormat",
                format!("{error}; lines are written as without it"),
            ));
            WaypointLines::Usual
        });
        (lines, told)
    }
}

fn json(text: &str) -> Result<WaypointLines, String> {
    let fields: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| format!("not a JSON object, as the encoding JSON wants: {error}"))?;
    let fields = fields.into_iter().map(|(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        _ => Err(format!("{name}: not a text")),
    });
    let fields: Vec<(String, String)> = fields.collect::<Result<_, _>>()?;
    LogForm::json(fields.iter().map(|(name, text)| (&**name, &**text)))?;
    Ok(WaypointLines::Json(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: Option<&str>, encoding: LineEncoding, format: &str) -> (WaypointLines, String) {
        let config = MeshConfig {
            access_log_file: file.map(str::to_owned),
            access_log_encoding: Some(encoding),
            access_log_format: Some(format.to_owned()),
            ..MeshConfig::default()
        };
        let (lines, told) = config.read_lines();
        let told = told.iter().map(|(field, why)| format!("{field}: {why} "));
        (lines, told.collect())
    }

    #[test]
    fn what_is_wanted_counts_as_far_as_it_is_understood() {
        use LineEncoding::{Json, Text};

        assert_eq!(MeshConfig::default().lines(), WaypointLines::Usual);
        let none = String::new();
        let usual = (WaypointLines::Usual, none.clone());
        assert_eq!(read(Some("/dev/stdout"), Text, ""), usual);
        let off = (WaypointLines::Off, none.clone());
        assert_eq!(read(Some(""), Json, "%NO%"), off);
        let text = WaypointLines::Text("%DURATION%".into());
        assert_eq!(read(None, Text, "%DURATION%"), (text, none.clone()));
        let (lines, _) = read(None, Json, "");
        assert!(matches!(lines, WaypointLines::Json(all) if all.len() == JSON_LINE.len()));
        let lines = WaypointLines::Json(vec![("ms".into(), "%DURATION%".into())]);
        assert_eq!(read(None, Json, "{\"ms\": \"%DURATION%\"}"), (lines, none));

        let (lines, told) = read(Some("/var/log/lines"), Text, "%NO%");
        assert_eq!(lines, WaypointLines::Usual);
        for words in ["accessLogFile: files", "accessLogFormat: %NO% is not known"] {
            assert!(told.contains(words), "{told}");
        }
        for wrong in ["%DURATION%", "{\"a\": 1}", "{\"a\": \"%NO%\"}"] {
            let (lines, told) = read(None, Json, wrong);
            assert_eq!(lines, WaypointLines::Usual);
            assert!(told.contains("accessLogFormat"), "{wrong}: {told}");
        }
    }
}
