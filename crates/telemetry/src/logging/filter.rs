use std::collections::BTreeMap;
use std::fmt;

use tracing_subscriber::filter::{LevelFilter, Targets};

/// Which lines are written: a level for everything, others for targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    all: LevelFilter,
    targets: BTreeMap<String, LevelFilter>,
}

/// A directive that is not `level`, `target=level` or `target:level`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a level (off, error, warn, info, debug, trace) nor target=level")]
pub struct FilterError(pub String);

impl Filter {
    /// Parses a comma list; empty means `info`.
    ///
    /// # Errors
    /// Names the first directive that cannot be understood.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self {
            all: LevelFilter::INFO,
            targets: BTreeMap::new(),
        };
        filter.add(text)?;
        Ok(filter)
    }

    /// Adds the directives of a comma list; later ones win.
    ///
    /// # Errors
    /// Names the first directive that cannot be understood; nothing is then added.
    pub fn add(&mut self, text: &str) -> Result<(), FilterError> {
        let mut next = self.clone();
        let directives = text.split(',').map(str::trim).filter(|d| !d.is_empty());
        for directive in directives {
            match split(directive) {
                (None, level) => next.all = parse_level(level, directive)?,
                (Some(target), level) => {
                    next.targets
                        .insert(target.to_owned(), parse_level(level, directive)?);
                }
            }
        }
        *self = next;
        Ok(())
    }

    /// Whether it asks for lines above `most`, the level up to which a program was built.
    pub(crate) fn exceeds(&self, most: LevelFilter) -> bool {
        self.all > most || self.targets.values().any(|level| *level > most)
    }

    /// The filter of the subscriber. A target `xds` also means our crate `isobar_xds` and the
    /// module `ztunnel::xds`, so that what Istio's users type has the effect they expect.
    pub(crate) fn targets(&self) -> Targets {
        let mut targets = Targets::new().with_default(self.all);
        for (target, level) in &self.targets {
            let short = target.strip_prefix("ztunnel::").unwrap_or(target);
            for name in [
                target.clone(),
                format!("isobar_{short}"),
                format!("ztunnel::{short}"),
            ] {
                targets = targets.with_target(name, *level);
            }
        }
        targets
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (target, level) in &self.targets {
            write!(f, "{target}={level},")?;
        }
        write!(f, "{}", self.all)
    }
}

/// Istio's usage text says `target:level`, its server wants `target=level`: both are taken.
fn split(directive: &str) -> (Option<&str>, &str) {
    if let Some((target, level)) = directive.split_once('=') {
        return (Some(target), level);
    }
    match directive.rsplit_once(':') {
        Some((target, level)) if !target.is_empty() && !target.ends_with(':') => {
            (Some(target), level)
        }
        _ => (None, directive),
    }
}

fn parse_level(level: &str, directive: &str) -> Result<LevelFilter, FilterError> {
    match level.to_ascii_lowercase().as_str() {
        "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(FilterError(directive.to_owned())),
    }
}
