//! `WWW-Authenticate` (RFC 9110, 11.6.1): what a registry wants to see before it answers.

use std::fmt;

/// Bytes of all challenges of one answer. Real ones have some 200.
const MAX_BYTES: usize = 8 * 1024;
/// Challenges of one answer.
const MAX_CHALLENGES: usize = 8;
/// Parameters of one challenge.
const MAX_PARAMETERS: usize = 16;

/// One challenge: a scheme and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// The scheme in lower case: `bearer`, `basic`.
    pub(crate) scheme: String,
    /// What follows it.
    pub(crate) detail: Detail,
}

/// What follows the scheme of a challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Detail {
    /// One opaque word (`token68`).
    Token(String),
    /// Parameters in the order given, names in lower case, no name twice. Empty for a scheme alone.
    Parameters(Vec<(String, String)>),
}

/// Why a header is not a list of challenges.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChallengeError {
    /// It is longer than any real one.
    #[error("WWW-Authenticate has {0} bytes: the limit is {MAX_BYTES}")]
    TooLong(usize),
    /// More challenges or parameters than any real one.
    #[error("WWW-Authenticate has more than {MAX_CHALLENGES} challenges or {MAX_PARAMETERS} parameters of one")]
    TooMany,
    /// It does not follow the grammar.
    #[error("WWW-Authenticate is malformed at byte {at}: {expected} is expected")]
    Malformed {
        /// Where.
        at: usize,
        /// What should be there.
        expected: &'static str,
    },
}

impl Challenge {
    /// The value of a parameter; `name` in lower case.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        match &self.detail {
            Detail::Token(_) => None,
            Detail::Parameters(all) => all.iter().find(|(had, _)| had == name).map(|(_, value)| value.as_str()),
        }
    }
}

/// Reads the value of one header field. Strict: what does not follow the grammar is refused as a whole, and nothing is guessed.
pub(crate) fn parse(header: &[u8]) -> Result<Vec<Challenge>, ChallengeError> {
    if header.len() > MAX_BYTES {
        return Err(ChallengeError::TooLong(header.len()));
    }
    let mut parser = Parser { bytes: header, at: 0 };
    let mut challenges = Vec::new();
    parser.commas();
    while !parser.is_at_end() {
        if challenges.len() == MAX_CHALLENGES {
            return Err(ChallengeError::TooMany);
        }
        challenges.push(parser.challenge()?);
    }
    Ok(challenges)
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn challenge(&mut self) -> Result<Challenge, ChallengeError> {
        let scheme = lower(self.token("a scheme")?);
        let after_scheme = self.at;
        self.spaces();
        if self.is_at_end() || self.peek() == Some(b',') {
            self.separator()?;
            return Ok(Challenge { scheme, detail: Detail::Parameters(Vec::new()) });
        }
        if self.at == after_scheme {
            return Err(self.malformed("a space after the scheme"));
        }
        if let Some(word) = self.token68() {
            self.separator()?;
            return Ok(Challenge { scheme, detail: Detail::Token(word) });
        }
        Ok(Challenge { scheme, detail: Detail::Parameters(self.parameters()?) })
    }

    /// Parameters up to the end or to the scheme of the next challenge: a token that no `=` follows.
    fn parameters(&mut self) -> Result<Vec<(String, String)>, ChallengeError> {
        let mut all: Vec<(String, String)> = Vec::new();
        loop {
            let name = lower(self.token("a parameter")?);
            self.spaces();
            if self.peek() != Some(b'=') {
                return Err(self.malformed("= after the parameter"));
            }
            self.at += 1;
            self.spaces();
            let value = match self.peek() {
                Some(b'"') => self.quoted()?,
                _ => text(self.token("a value")?),
            };
            if all.iter().any(|(had, _)| *had == name) {
                return Err(self.malformed("each parameter once"));
            }
            if all.len() == MAX_PARAMETERS {
                return Err(ChallengeError::TooMany);
            }
            all.push((name, value));
            self.separator()?;
            if self.is_at_end() || !self.is_parameter_next() {
                return Ok(all);
            }
        }
    }

    fn is_parameter_next(&self) -> bool {
        let mut ahead = Parser { bytes: self.bytes, at: self.at };
        ahead.token("a parameter").is_ok() && {
            ahead.spaces();
            ahead.peek() == Some(b'=')
        }
    }

    /// `token68`, where it stands alone up to the next comma or the end; otherwise nothing is taken.
    fn token68(&mut self) -> Option<String> {
        let rest = &self.bytes[self.at..];
        let word = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(b)).count();
        let padding = rest[word..].iter().take_while(|b| **b == b'=').count();
        let after = rest[word + padding..].iter().find(|b| !matches!(b, b' ' | b'\t'));
        if word == 0 || !matches!(after, None | Some(b',')) {
            return None;
        }
        self.at += word + padding;
        Some(text(&rest[..word + padding]))
    }

    fn quoted(&mut self) -> Result<String, ChallengeError> {
        self.at += 1;
        let mut value = Vec::new();
        loop {
            let byte = self.peek().ok_or_else(|| self.malformed("a closing quote"))?;
            self.at += 1;
            match byte {
                b'"' => return Ok(text(&value)),
                b'\\' => {
                    value.push(self.peek().filter(|byte| is_text(*byte)).ok_or_else(|| self.malformed("a character"))?);
                    self.at += 1;
                }
                byte if is_text(byte) => value.push(byte),
                _ => return Err(self.malformed("a printable ASCII character")),
            }
        }
    }

    fn token(&mut self, expected: &'static str) -> Result<&'a [u8], ChallengeError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take_while(|b| is_token(**b)).count();
        if length == 0 {
            return Err(self.malformed(expected));
        }
        self.at += length;
        Ok(&rest[..length])
    }

    /// The end, or one comma and any empty elements of the list after it.
    fn separator(&mut self) -> Result<(), ChallengeError> {
        self.spaces();
        match self.peek() {
            None => Ok(()),
            Some(b',') => {
                self.commas();
                Ok(())
            }
            Some(_) => Err(self.malformed("a comma")),
        }
    }

    fn commas(&mut self) {
        while matches!(self.peek(), Some(b',' | b' ' | b'\t')) {
            self.at += 1;
        }
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn malformed(&self, expected: &'static str) -> ChallengeError {
        ChallengeError::Malformed { at: self.at, expected }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What a quoted string may hold. RFC 9110 allows bytes above ASCII, without a meaning: they are refused.
fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~')
}

/// Bytes that were checked to be ASCII.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn lower(bytes: &[u8]) -> String {
    text(bytes).to_ascii_lowercase()
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.scheme)?;
        match &self.detail {
            Detail::Token(word) => write!(f, " {word}"),
            Detail::Parameters(all) => {
                for (at, (name, value)) in all.iter().enumerate() {
                    let separator = if at == 0 { " " } else { ", " };
                    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
                    write!(f, "{separator}{name}=\"{value}\"")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let all = parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Challenge { scheme: scheme.into(), detail: Detail::Parameters(all) }
    }

    #[test]
    fn real_challenges_are_read() {
        let hub = br#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        let expected = [
            ("realm", "https://auth.docker.io/token"),
            ("service", "registry.docker.io"),
            ("scope", "repository:library/x:pull,push"),
        ];
        assert_eq!(parse(hub), Ok(vec![challenge("bearer", &expected)]));
        assert_eq!(parse(b"Basic realm=\"a \\\"b\\\"\""), Ok(vec![challenge("basic", &[("realm", "a \"b\"")])]));
        let two = parse(b"Basic realm=x, , Bearer Realm = \"y\" ,service=z, Negotiate, Other dGVzdA==");
        let token = Challenge { scheme: "other".into(), detail: Detail::Token("dGVzdA==".into()) };
        let expected = vec![
            challenge("basic", &[("realm", "x")]),
            challenge("bearer", &[("realm", "y"), ("service", "z")]),
            challenge("negotiate", &[]),
            token,
        ];
        assert_eq!(two, Ok(expected));
        assert_eq!(parse(b" ,, "), Ok(vec![]));
    }

    #[test]
    fn what_does_not_follow_the_grammar_is_refused() {
        for bad in [
            &b"Bearer realm=\"x"[..],
            b"Bearer realm=\"x\" service=\"y\"",
            b"Bearer realm=\"x\\",
            b"Bearer realm=\"\xff\"",
            b"Bearer realm=\"a\nb\"",
            b"Bearer realm=x, realm=y",
            b"Bearer realm=x y",
            b"Bearer/realm",
            b"=x",
            b"\"x\"",
            b"Bearer =x",
        ] {
            assert!(matches!(parse(bad), Err(ChallengeError::Malformed { .. })), "{}: {:?}", text(bad), parse(bad));
        }
        assert!(matches!(parse(&[b'a'; MAX_BYTES + 1]), Err(ChallengeError::TooLong(_))));
        assert_eq!(parse("a, ".repeat(9).as_bytes()), Err(ChallengeError::TooMany));
        let many: Vec<_> = (0..17).map(|n| format!("p{n}=1")).collect();
        assert_eq!(parse(format!("a {}", many.join(",")).as_bytes()), Err(ChallengeError::TooMany));
    }

    fn any_challenge() -> impl Strategy<Value = Challenge> {
        let token = "[a-z][a-z0-9!#$%&'*+.^_`|~-]{0,8}";
        let parameters = proptest::collection::btree_map(token, "[\\t -~]{0,12}", 0..6)
            .prop_map(|map| Detail::Parameters(map.into_iter().collect()));
        let detail = prop_oneof![parameters, "[A-Za-z0-9._~+/-]{1,12}={0,2}".prop_map(Detail::Token)];
        (token, detail).prop_map(|(scheme, detail)| Challenge { scheme, detail })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn almost_challenges_are_read_or_refused(text in "(Bearer|Basic|x)?[ ,=\"\\\\a-c]{0,40}") {
            let _ = parse(text.as_bytes());
        }

        #[test]
        fn challenges_read_back_as_they_were_written(all in proptest::collection::vec(any_challenge(), 1..5)) {
            let text = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            prop_assert_eq!(parse(text.as_bytes()), Ok(all));
        }
    }
}
