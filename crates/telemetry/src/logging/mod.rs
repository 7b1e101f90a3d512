//! Log lines on standard output, in Istio's ztunnel format.
//!
//! Text: time, level, target with its spans, message, then `key=value`; separated by tabs. JSON:
//! one object a line. Lines go through a bounded queue to a thread of their own: a slow reader of
//! our output loses lines (counted, and told in a line of its own) and never stalls a connection.
//! So do more than 1,000 lines a second, unless [`LogControl::limit`] says otherwise.

mod filter;
mod line;
mod output;

use std::sync::{Arc, Mutex, PoisonError};

use tracing::level_filters::STATIC_MAX_LEVEL;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

pub use filter::{Filter, FilterError};
use line::LineLayer;
use output::Output;

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Tab separated.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// `json` (Istio's `LOG_FORMAT`), anything else is text.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "json" {
            Self::Json
        } else {
            Self::Text
        }
    }
}

/// How to log.
#[derive(Debug, Clone, Default)]
pub struct LogConfig {
    /// Form of a line.
    pub format: LogFormat,
    /// Comma list of `level`, `target=level` (Istio's `RUST_LOG`); empty means `info`.
    pub filter: String,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter could not be parsed.
    #[error("log level: {0}")]
    Filter(#[from] FilterError),
    /// The process has a log subscriber already.
    #[error("logging is set up already")]
    Taken,
    /// The system refused the writer's thread.
    #[error("log writer thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// Changes the level of a running process and writes lines that have a format of their own.
#[derive(Debug, Clone)]
pub struct LogControl {
    // Invariant: what `handle` holds is built from `current`. Held while one change is applied.
    current: Arc<Mutex<Filter>>,
    initial: Filter,
    handle: reload::Handle<Targets, Registry>,
    output: Output,
}

/// Sets up logging for the whole process.
///
/// # Errors
/// When the filter is wrong, or logging was set up before.
pub fn init(config: &LogConfig) -> Result<LogControl, LogError> {
    let initial = Filter::parse(&config.filter)?;
    let output = Output::stdout(config.format).map_err(LogError::Thread)?;
    let (targets, handle) = reload::Layer::new(initial.targets());
    let layer = LineLayer::new(config.format, output.clone());
    tracing_subscriber::registry()
        .with(layer.with_filter(targets))
        .try_init()
        .map_err(|_| LogError::Taken)?;
    let control = LogControl {
        current: Arc::new(Mutex::new(initial.clone())),
        initial,
        handle,
        output,
    };
    if let Some(unheard) = control.unheard() {
        tracing::warn!("{unheard}");
    }
    Ok(control)
}

impl LogControl {
    /// Adds the directives of `level` to the filter in force, or, with `reset`, to the one of the
    /// start.
    ///
    /// # Errors
    /// When `level` cannot be parsed; the filter in force then stays.
    pub fn change(&self, level: Option<&str>, reset: bool) -> Result<(), LogError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = if reset {
            self.initial.clone()
        } else {
            current.clone()
        };
        if let Some(level) = level {
            next.add(level)?;
        }
        // Fails only if the subscriber is gone, which lives as long as the process.
        let _ = self.handle.reload(next.targets());
        *current = next;
        Ok(())
    }

    /// What the filter in force asks for and this program was built without, in words; programs of
    /// the images have no level above debug, since asking for it costs every request and connection.
    #[must_use]
    pub fn unheard(&self) -> Option<String> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let most = STATIC_MAX_LEVEL;
        current.exceeds(most).then(|| {
            format!("this program has no log level above {most}: what asks for more gets {most}")
        })
    }

    /// The filter in force, as text.
    #[must_use]
    pub fn current(&self) -> String {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .to_string()
    }

    /// Writes `text` and a line break as it is: for access logs with a format of their own.
    pub fn line(&self, text: String) {
        self.output.write(|| text);
    }

    /// Changes how many lines a second are written; 0 for no limit.
    pub fn limit(&self, lines_per_second: u32) {
        self.output.limit(lines_per_second.into());
    }

    /// Waits, at most a second, until what was logged before is written.
    pub fn flush(&self) {
        self.output.flush();
    }
}

#[cfg(test)]
mod tests;
