//! Enrolment, redirection rules, pod announcements.

fn main() {}
