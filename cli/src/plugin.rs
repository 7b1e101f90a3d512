//! This program as a plugin of kubectl: called `kubectl-isobar` it is `kubectl isobar`.

use std::ffi::OsStr;
use std::path::Path;

use clap::Command;

/// How a plugin's help has to call it.
const NAME: &str = "kubectl isobar";

/// True if the program was called by a plugin's name.
pub(crate) fn is_plugin(argv0: Option<&OsStr>) -> bool {
    let name = argv0.and_then(|path| Path::new(path).file_name());
    name.is_some_and(|name| name.to_string_lossy().starts_with("kubectl-"))
}

/// The same command line, which calls itself as it was called.
pub(crate) fn as_plugin(command: Command) -> Command {
    renamed(command.bin_name(NAME).display_name(NAME))
}

/// Examples are to be typed as they stand.
fn renamed(mut command: Command) -> Command {
    if let Some(text) = command.get_after_help() {
        let text = text.to_string();
        let text = text.replace("  isobar ", &format!("  {NAME} "));
        command = command.after_help(text.replace("`isobar ", &format!("`{NAME} ")));
    }
    let below: Vec<String> = command
        .get_subcommands()
        .map(|one| one.get_name().to_owned())
        .collect();
    for name in below {
        command = command.mut_subcommand(name, renamed);
    }
    command
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::arguments::Isobar;

    #[test]
    fn a_name_makes_a_plugin() {
        assert!(is_plugin(Some(OsStr::new("/usr/bin/kubectl-isobar"))));
        assert!(!is_plugin(Some(OsStr::new("/kubectl-x/isobar"))));
        assert!(!is_plugin(None));
    }

    #[test]
    fn a_plugins_help_is_to_be_typed_as_it_stands() {
        let mut command = as_plugin(Isobar::command());
        let help = command.render_long_help().to_string();
        assert!(help.contains("Usage: kubectl isobar"), "{help}");
        assert!(help.contains("  kubectl isobar status"), "{help}");
        assert!(!help.contains("\n  isobar "), "{help}");
        command.build();
        let apply = command.find_subcommand_mut("waypoint").unwrap();
        let help = apply.find_subcommand_mut("apply").unwrap();
        let help = help.render_long_help().to_string();
        assert!(
            help.contains("Usage: kubectl isobar waypoint apply"),
            "{help}"
        );
        assert!(!help.contains("\n  isobar "), "{help}");
    }
}
