use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;
use super::output::Output;

/// Bytes that a line about a connection takes, as a rule: it is then written without moving.
const LINE: usize = 1024;

/// Turns events into lines.
pub(super) struct LineLayer {
    format: LogFormat,
    output: Output,
}

impl LineLayer {
    pub(super) const fn new(format: LogFormat, output: Output) -> Self {
        Self { format, output }
    }
}

/// Fields of a span, kept with it until its events are written.
struct SpanFields {
    text: TextFields,
    json: Map<String, Value>,
}

impl<S> Layer<S> for LineLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = SpanFields {
            text: TextFields::default(),
            json: Map::new(),
        };
        match self.format {
            LogFormat::Text => attributes.record(&mut fields.text),
            LogFormat::Json => attributes.record(&mut JsonFields(&mut fields.json)),
        }
        span.extensions_mut().replace(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let Some(fields) = extensions.get_mut::<SpanFields>() else {
            return;
        };
        match self.format {
            LogFormat::Text => values.record(&mut fields.text),
            LogFormat::Json => values.record(&mut JsonFields(&mut fields.json)),
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        self.output.write(|| match self.format {
            LogFormat::Text => text_line(event, &context),
            LogFormat::Json => json_line(event, &context),
        });
    }
}

/// A line about the log itself, outside any event.
pub(super) fn plain_line(format: LogFormat, message: &str) -> String {
    let time = now();
    match format {
        LogFormat::Text => format!("{time}\twarn\tlog\t{message}"),
        LogFormat::Json => serde_json::json!({
            "level": "warn", "time": time, "scope": "log", "message": message,
        })
        .to_string(),
    }
}

fn text_line<S>(event: &Event<'_>, context: &Context<'_, S>) -> String
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let mut line = String::with_capacity(LINE);
    let target = event.metadata().target();
    let target = target.strip_prefix("isobar_").unwrap_or(target);
    let target = target.strip_prefix("ztunnel::").unwrap_or(target);
    for part in [&now(), "\t", level(event), "\t", target] {
        line.push_str(part);
    }
    for span in context
        .event_scope(event)
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .iter()
        .rev()
    {
        line.push(':');
        line.push_str(span.name());
        if let Some(fields) = span.extensions().get::<SpanFields>()
            && !fields.text.pairs.is_empty()
        {
            // Writing to a string cannot fail.
            let _ = write!(line, "{{{}}}", fields.text.pairs);
        }
    }
    let mut fields = TextFields {
        message: String::new(),
        pairs: String::with_capacity(LINE),
    };
    event.record(&mut fields);
    line.push('\t');
    line.push_str(&fields.message);
    if !fields.pairs.is_empty() {
        line.push('\t');
        line.push_str(&fields.pairs);
    }
    line
}

fn json_line<S>(event: &Event<'_>, context: &Context<'_, S>) -> String
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let mut object = Map::new();
    object.insert("level".into(), level(event).into());
    object.insert("time".into(), now().into());
    object.insert("scope".into(), event.metadata().target().into());
    let mut fields = Map::new();
    event.record(&mut JsonFields(&mut fields));
    if let Some(message) = fields.shift_remove("message") {
        object.insert("message".into(), message);
    }
    object.extend(fields);
    for span in context.event_scope(event).into_iter().flatten() {
        let extensions = span.extensions();
        let fields = extensions.get::<SpanFields>();
        let fields = fields.map(|f| f.json.clone()).unwrap_or_default();
        object.insert(span.name().into(), Value::Object(fields));
    }
    Value::Object(object).to_string()
}

fn level(event: &Event<'_>) -> &'static str {
    match *event.metadata().level() {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warn",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

/// RFC 3339, UTC, microseconds.
fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

#[derive(Default)]
struct TextFields {
    message: String,
    pairs: String,
}

impl TextFields {
    fn key(&mut self, field: &Field) {
        if !self.pairs.is_empty() {
            self.pairs.push(' ');
        }
        self.pairs.push_str(field.name());
        self.pairs.push('=');
    }
}

impl Visit for TextFields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.key(field);
        self.pairs.push_str(itoa::Buffer::new().format(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.key(field);
        self.pairs.push_str(itoa::Buffer::new().format(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            escape_controls(value, &mut self.message);
            return;
        }
        self.key(field);
        quote(cut(value), &mut self.pairs);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(Escaping(&mut self.message), "{value:?}");
            return;
        }
        self.key(field);
        let _ = write!(Escaping(&mut self.pairs), "{value:?}");
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.key(field);
        quote(cut(&chain(value)), &mut self.pairs);
    }
}

struct JsonFields<'a>(&'a mut Map<String, Value>);

impl JsonFields<'_> {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for JsonFields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, visible(value));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, visible(&format!("{value:?}")));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, visible(&chain(value)));
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text
}

/// Writes text without control characters.
struct Escaping<'a>(&'a mut String);

impl fmt::Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape_controls(text, self.0);
        Ok(())
    }
}

/// Writes text in quotes, escaped.
fn quote(text: &str, out: &mut String) {
    // Nearly all text is as it is written: looking at each character costs more.
    if text
        .bytes()
        .all(|b| (b' '..=b'~').contains(&b) && b != b'"' && b != b'\\')
    {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        let _ = write!(out, "{text:?}");
    }
}

/// A line is a line: what a peer sent must not start another one.
fn escape_controls(text: &str, out: &mut String) {
    let text = cut(text);
    // Nearly all text is plain ASCII, of which nothing needs escaping.
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        out.push_str(text);
        return;
    }
    for c in text.chars() {
        if c.is_control() || is_deceptive(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

/// Longest value of a field, in bytes: a peer's text must not be the bulk of the log.
const LONGEST: usize = 16 * 1024;

/// The start of `text`, if it is too long for a line.
fn cut(text: &str) -> &str {
    if text.len() <= LONGEST {
        return text;
    }
    let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Text for JSON, which itself escapes the controls of ASCII only; a terminal obeys others too.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in cut(text).chars() {
        if (c.is_control() && !c.is_ascii()) || c == '\u{7f}' || is_deceptive(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that change how the rest of a line is shown: line breaks and writing directions.
const fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
