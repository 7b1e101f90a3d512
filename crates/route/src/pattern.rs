use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

/// Longest pattern, in bytes.
const LONGEST: usize = 1024;
/// Most repetitions in one counted repetition (RE2's own limit).
const MOST_REPEATS: u32 = 1000;
/// Compiled program, in bytes.
const PROGRAM_LIMIT: usize = 256 * 1024;
/// Lazily built automaton, in bytes.
const AUTOMATON_LIMIT: usize = 1024 * 1024;
/// Depth of nested groups.
const NEST_LIMIT: u32 = 50;

/// A regular expression in RE2 syntax with RE2 meaning; matches whole values in linear time.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// Why a text is not usable as a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("regular expression {pattern:?}: {problem}")]
pub struct PatternError {
    /// The text as written.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Pattern {
    /// Compiles `text`; the pattern has to match a whole value.
    ///
    /// # Errors
    /// When the text is not RE2 syntax, or is larger than the limits of this proxy.
    pub fn full(text: &str) -> Result<Self, PatternError> {
        Self::build(text, |inner| format!(r"\A(?:{inner})\z"))
    }

    /// Compiles `text` to be found anywhere in a value, for rewriting.
    ///
    /// # Errors
    /// As [`Pattern::full`].
    pub fn search(text: &str) -> Result<Self, PatternError> {
        Self::build(text, |inner| format!("(?:{inner})"))
    }

    fn build(text: &str, wrap: impl Fn(&str) -> String) -> Result<Self, PatternError> {
        let wrong = |problem: String| PatternError {
            pattern: text.to_owned(),
            problem,
        };
        if text.len() > LONGEST {
            return Err(wrong(format!("longer than {LONGEST} bytes")));
        }
        let translated = Translator::new(text).run().map_err(wrong)?;
        let regex = RegexBuilder::new(&wrap(&translated))
            .size_limit(PROGRAM_LIMIT)
            .dfa_size_limit(AUTOMATON_LIMIT)
            .nest_limit(NEST_LIMIT)
            .build()
            .map_err(|error| wrong(last_line(&error.to_string())))?;
        Ok(Self {
            text: text.to_owned(),
            regex,
        })
    }

    /// True if it matches.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        self.regex.is_match(value)
    }

    /// Replaces every match in `value`; `replacement` names groups as `\1`, a backslash as `\\`.
    #[must_use]
    pub fn replace_all(&self, value: &str, replacement: &str) -> Vec<u8> {
        self.regex
            .replace_all(value.as_bytes(), re2_replacement(replacement).as_bytes())
            .into_owned()
    }

    /// The pattern as the user wrote it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Pattern {
    /// The text as written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

fn last_line(text: &str) -> String {
    text.lines()
        .last()
        .unwrap_or(text)
        .trim_start_matches("error: ")
        .to_owned()
}

/// `\1` becomes `${1}`; a dollar sign is only a dollar sign.
fn re2_replacement(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.peek().copied() {
                Some(digit) if digit.is_ascii_digit() => {
                    chars.next();
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                Some('\\') => {
                    chars.next();
                    out.push('\\');
                }
                _ => out.push('\\'),
            },
            other => out.push(other),
        }
    }
    out
}

/// Rewrites RE2 syntax into what the `regex` crate reads the same way, or says why it cannot.
struct Translator<'a> {
    rest: std::str::Chars<'a>,
    out: String,
    depth: usize,
    /// The last item was a repetition; another one right after it is an error in RE2.
    repeated: bool,
}

impl<'a> Translator<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars(),
            out: String::with_capacity(text.len() + 16),
            depth: 0,
            repeated: false,
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn run(mut self) -> Result<String, String> {
        while let Some(c) = self.rest.next() {
            let repetition = match c {
                '\\' => {
                    self.escape()?;
                    false
                }
                '[' => {
                    self.class()?;
                    false
                }
                '(' => {
                    self.group()?;
                    false
                }
                ')' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or("a closing parenthesis without an opening one")?;
                    self.out.push(')');
                    false
                }
                '*' | '+' | '?' => self.repetition(&c.to_string())?,
                '{' => self.counted()?,
                other => {
                    self.literal(other);
                    false
                }
            };
            self.repeated = repetition;
        }
        if self.depth > 0 {
            return Err("an opening parenthesis without a closing one".into());
        }
        Ok(self.out)
    }

    fn literal(&mut self, c: char) {
        // Anchors, alternation and the dot mean the same on both sides.
        if matches!(c, '^' | '$' | '|' | '.') {
            self.out.push(c);
        } else {
            self.out
                .push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
        }
    }

    fn repetition(&mut self, operator: &str) -> Result<bool, String> {
        if self.repeated {
            return Err(format!("a repetition {operator:?} of a repetition"));
        }
        self.out.push_str(operator);
        if self.peek() == Some('?') {
            self.rest.next();
            self.out.push('?');
        }
        Ok(true)
    }

    /// `{2}`, `{2,}`, `{2,5}`; anything else in braces is text.
    fn counted(&mut self) -> Result<bool, String> {
        let Some((inside, after)) = self.rest.as_str().split_once('}') else {
            self.out.push_str(r"\{");
            return Ok(false);
        };
        let (low, high) = inside.split_once(',').unwrap_or((inside, inside));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(low) || !(high.is_empty() || digits(high)) {
            self.out.push_str(r"\{");
            return Ok(false);
        }
        let over = |s: &str| !s.is_empty() && s.parse::<u32>().map_or(true, |n| n > MOST_REPEATS);
        if over(low) || over(high) {
            return Err(format!("more than {MOST_REPEATS} repetitions"));
        }
        let operator = format!("{{{inside}}}");
        self.rest = after.chars();
        self.repetition(&operator)
    }

    fn group(&mut self) -> Result<(), String> {
        self.depth += 1;
        self.out.push('(');
        if self.peek() != Some('?') {
            return Ok(());
        }
        self.rest.next();
        self.out.push('?');
        let head = self.rest.as_str();
        let named = head.strip_prefix("P<").or_else(|| head.strip_prefix('<'));
        if let Some(name) = named {
            if name.starts_with(['=', '!']) {
                return Err("look-behind is not part of RE2".into());
            }
            let (name, after) = name.split_once('>').ok_or("a group name without an end")?;
            self.out.push_str(&format!("P<{name}>"));
            self.rest = after.chars();
            return Ok(());
        }
        let end = head
            .find([':', ')'])
            .ok_or("a group without a closing parenthesis")?;
        if let Some(odd) = head[..end].chars().find(|c| !"imsU-".contains(*c)) {
            return Err(format!("(?{odd} is not part of RE2"));
        }
        self.out.push_str(&head[..=end]);
        if head[end..].starts_with(')') {
            self.depth -= 1;
        }
        self.rest = head[end + 1..].chars();
        Ok(())
    }

    fn escape(&mut self) -> Result<(), String> {
        let c = self.rest.next().ok_or("a backslash at the end")?;
        match c {
            'd' => self.out.push_str("[0-9]"),
            'D' => self.out.push_str("[^0-9]"),
            'w' => self.out.push_str("[0-9A-Za-z_]"),
            'W' => self.out.push_str("[^0-9A-Za-z_]"),
            's' => self.out.push_str(r"[\t\n\x0c\r ]"),
            'S' => self.out.push_str(r"[^\t\n\x0c\r ]"),
            'b' => self.out.push_str(r"(?-u:\b)"),
            'B' => self.out.push_str(r"(?-u:\B)"),
            'A' | 'z' => {
                self.out.push('\\');
                self.out.push(c);
            }
            'Q' => {
                let rest = self.rest.as_str();
                let (text, after) = rest.split_once(r"\E").unwrap_or((rest, ""));
                self.out.push_str(&regex::escape(text));
                self.rest = after.chars();
            }
            'E' => {}
            other => self.plain_escape(other)?,
        }
        Ok(())
    }

    /// Escapes that stand for one character or a Unicode class, inside and outside of brackets.
    fn plain_escape(&mut self, c: char) -> Result<(), String> {
        match c {
            'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'p' | 'P' | 'x' => {
                self.out.push('\\');
                self.out.push(c);
            }
            'C' => return Err(r"\C (any byte) is not supported".into()),
            c if c.is_ascii_alphanumeric() => {
                return Err(format!("\\{c} is not part of RE2 as this proxy reads it"));
            }
            c => self
                .out
                .push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
        // `\p{Greek}`, `\x{10FFFF}`: the braces belong to the escape.
        if matches!(c, 'p' | 'P' | 'x') && self.peek() == Some('{') {
            let (inside, after) = self
                .rest
                .as_str()
                .split_once('}')
                .ok_or("a brace without an end")?;
            self.out.push_str(&format!("{inside}}}"));
            self.rest = after.chars();
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.peek() == Some('^') {
            self.rest.next();
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let c = self.rest.next().ok_or("a character class without an end")?;
            match c {
                ']' if !first => break,
                '[' => match self.posix_class() {
                    Some(name) => self.out.push_str(&name),
                    None => self.member_or_range(c)?,
                },
                '\\' => match self.perl_class() {
                    Some(text) => self.out.push_str(text),
                    None => self.member_or_range(c)?,
                },
                other => self.member_or_range(other)?,
            }
            first = false;
        }
        self.out.push(']');
        Ok(())
    }

    /// `\d` and its like inside of brackets, after the backslash was read.
    fn perl_class(&mut self) -> Option<&'static str> {
        let text = match self.peek()? {
            'd' => "0-9",
            'w' => "0-9A-Za-z_",
            's' => r"\t\n\x0c\r ",
            'D' => "[^0-9]",
            'W' => "[^0-9A-Za-z_]",
            'S' => r"[^\t\n\x0c\r ]",
            _ => return None,
        };
        self.rest.next();
        Some(text)
    }

    /// One member of a class, of which `c` was read, or a range that starts with it. RE2 reads a range
    /// wherever a hyphen stands between two members, be these hyphens themselves; the hyphens that are
    /// members are escaped, as two in a row would be a set difference to `regex`.
    fn member_or_range(&mut self, c: char) -> Result<(), String> {
        let unicode_class = c == '\\' && matches!(self.peek(), Some('p' | 'P'));
        self.member(c)?;
        let mut ahead = self.rest.clone();
        if unicode_class || ahead.next() != Some('-') || matches!(ahead.next(), Some(']') | None) {
            return Ok(());
        }
        self.rest.next();
        self.out.push('-');
        let high = self.rest.next().ok_or("a character class without an end")?;
        self.member(high)
    }

    fn member(&mut self, c: char) -> Result<(), String> {
        if c == '\\' {
            let escaped = self.rest.next().ok_or("a backslash at the end")?;
            return self.plain_escape(escaped);
        }
        let text = regex::escape(c.encode_utf8(&mut [0; 4]));
        self.out.push_str(&text);
        Ok(())
    }

    /// `[:alpha:]` and its negation, after the opening bracket was read.
    fn posix_class(&mut self) -> Option<String> {
        let (name, after) = self.rest.as_str().strip_prefix(':')?.split_once(":]")?;
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'^') {
            return None;
        }
        let text = format!("[:{name}:]");
        self.rest = after.chars();
        Some(text)
    }
}

#[cfg(test)]
mod tests;
