/// Checks that a pattern compiles and means here what RE2 makes of it.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check(pattern: &str) -> Result<(), String> {
    regex::Regex::new(pattern)
        .map(drop)
        .map_err(|error| error.to_string())
}
