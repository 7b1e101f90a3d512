use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::code::Code;
use crate::kinds::ObjectRef;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; the object is in force as written.
    Warning,
    /// Valid, but asks for something this version does not do. The object is in force; whoever
    /// applies it must make its target refuse, or report it: never ignore it in silence.
    Unsupported,
    /// Not in force; the last good version of the object stays, if there was one.
    Error,
}

impl Severity {
    /// Lower-case word for messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Unsupported => "unsupported",
            Self::Error => "error",
        }
    }
}

/// Something to tell the user about an object or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What sort of finding.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// File it was found in; `None` for objects that did not come from one.
    pub file: Option<Arc<Path>>,
    /// Line in the file, from 1, where known.
    pub line: Option<u32>,
    /// Object it is about; `None` when the text could not be read that far.
    pub object: Option<ObjectRef>,
    /// Path of the field, as `spec.http[0].route[1].weight`; empty when it is about the whole.
    pub field: String,
    /// One sentence without a full stop.
    pub message: String,
    /// What to do, where we know.
    pub hint: Option<String>,
}

impl Finding {
    /// A finding about a field, not yet placed in a file.
    pub fn new(severity: Severity, field: impl Into<String>, message: impl Into<String>) -> Self {
        let code = match severity {
            Severity::Warning => Code::ADVICE,
            Severity::Unsupported => Code::NOT_HONOURED,
            Severity::Error => Code::INVALID_VALUE,
        };
        Self {
            code,
            severity,
            file: None,
            line: None,
            object: None,
            field: field.into(),
            message: message.into(),
            hint: None,
        }
    }

    /// An [`Severity::Error`].
    pub fn error(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, field, message)
    }

    /// A [`Severity::Warning`].
    pub fn warning(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, field, message)
    }

    /// The same of another sort.
    #[must_use]
    pub fn of(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// The same with what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same about an object.
    #[must_use]
    pub fn about(mut self, object: &ObjectRef) -> Self {
        self.object = Some(object.clone());
        self
    }

    /// True for [`Severity::Error`].
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Finding {
    /// `error: FILE:LINE: KIND NS/NAME: FIELD: MESSAGE (HINT)`, leaving out what is not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity.as_str())?;
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, _) => {}
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}
