//! Where tests make a process die.

/// Ends the process at once, as a crash does, if the environment variable `ISOBAR_CRASH_AT` asks for
/// this point (`WHEN-STEP`). Release builds have no such points.
#[cfg(debug_assertions)]
pub fn crash_point(when: &str, step: &str) {
    let asked = std::env::var("ISOBAR_CRASH_AT").unwrap_or_default();
    if asked
        .strip_prefix(when)
        .and_then(|rest| rest.strip_prefix('-'))
        == Some(step)
    {
        // It cannot fail: the signal is valid and the process its own.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Does nothing: this build has no points where tests can end it.
#[cfg(not(debug_assertions))]
pub const fn crash_point(_when: &str, _step: &str) {}
