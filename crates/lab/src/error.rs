use std::path::PathBuf;

/// Why something about a lab did not work. Messages say what to do where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The name cannot be used.
    #[error(
        "{name:?} is not a lab name: use at most 40 lower-case letters, digits and inner hyphens"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Too few or too many nodes.
    #[error("a lab has 1 to {most} nodes, not {asked}")]
    NodeCount {
        /// What was given.
        asked: u8,
        /// The limit.
        most: u8,
    },
    /// No such lab is running.
    #[error(
        "no lab named {name:?} is running{}; `isobar lab up -f DIR --name {name}` starts one",
        others_text(.others)
    )]
    NotRunning {
        /// The lab.
        name: String,
        /// Labs that are running.
        others: Vec<String>,
    },
    /// A lab of that name runs already.
    #[error(
        "lab {name:?} is running already (process {pid}); `isobar lab down --lab {name}` ends it"
    )]
    Running {
        /// The lab.
        name: String,
        /// Its supervisor, as the host numbers it.
        pid: i32,
    },
    /// A lab of that name is being started or removed.
    #[error("lab {name:?} is just being started by somebody else")]
    Starting {
        /// The lab.
        name: String,
    },
    /// The kernel or its configuration does not allow what a lab needs.
    #[error("this system does not allow a lab: {why}")]
    Forbidden {
        /// What was refused, and what would help.
        why: String,
    },
    /// A program that the lab needs is not installed.
    #[error("{program} was not found: {hint}")]
    MissingProgram {
        /// The program.
        program: String,
        /// How to get it.
        hint: String,
    },
    /// The lab started but did not become ready, or ended while starting.
    #[error("the lab did not become ready: {why}{}", tail_text(.tail))]
    NotReady {
        /// What is missing.
        why: String,
        /// Last lines of the log that tells most.
        tail: Vec<String>,
    },
    /// The supervisor refused a request.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The supervisor went away during a request, or answered something else.
    #[error("the lab's supervisor did not answer: {why}")]
    NoAnswer {
        /// What happened.
        why: String,
    },
    /// A path is too long for a socket name.
    #[error("{} is too long for socket names below it; choose a shorter state folder", .path.display())]
    PathTooLong {
        /// The lab's state folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl LabError {
    /// For `map_err`: says what was being done when the system refused.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    /// The same for errors of system calls made through `nix`.
    pub(crate) fn sys(doing: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let doing = doing.into();
        move |errno| Self::Io {
            doing,
            source: errno.into(),
        }
    }
}

fn others_text(others: &[String]) -> String {
    if others.is_empty() {
        String::new()
    } else {
        format!(", only {}", others.join(", "))
    }
}

fn tail_text(tail: &[String]) -> String {
    if tail.is_empty() {
        String::new()
    } else {
        format!("\n  {}", tail.join("\n  "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_come_once() {
        let error = LabError::sys("looking for x")(nix::errno::Errno::ENOENT);
        let text = crate::stage::with_causes(&error);
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
        assert_eq!(error.to_string(), "looking for x");
    }

    #[test]
    fn messages_name_the_lab() {
        let missing = |others: &[&str]| {
            let others = others.iter().map(|&name| name.to_owned()).collect();
            let name = "nix".to_owned();
            LabError::NotRunning { name, others }.to_string()
        };
        let next = "; `isobar lab up -f DIR --name nix` starts one";
        assert_eq!(
            missing(&[]),
            format!("no lab named \"nix\" is running{next}")
        );
        assert_eq!(
            missing(&["a", "b"]),
            format!("no lab named \"nix\" is running, only a, b{next}")
        );
        let name = "books".to_owned();
        let text = LabError::Running { name, pid: 7 }.to_string();
        assert!(text.contains("`isobar lab down --lab books`"), "{text}");
    }
}
