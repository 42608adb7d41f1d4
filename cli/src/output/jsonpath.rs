//! kubectl's JSONPath templates: `{.items[*].metadata.name}`, `{range ...}{...}{"\n"}{end}`, `[?(@.type=="Ready")]`,
//! `['a']`, `[1:3]`, `..name`. It is a dialect older than RFC 9535, which is why no crate of that is used.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use serde_json::Value;

/// The longest template in bytes that is read: a limit on recursion, far above what people write.
const MAX_TEMPLATE_BYTES: usize = 8 << 10;

/// A text with expressions in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Values(Path),
    Range(Path, Vec<Node>),
}

/// A way to values within a value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Path {
    /// From the whole document (`$`), not from the value at hand.
    from_root: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    All,
    /// The value and everything in it.
    Deep,
    Index(i64),
    Slice {
        from: Option<i64>,
        to: Option<i64>,
        by: usize,
    },
    Union(Vec<Step>),
    Where(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    test: Option<(Test, Operand)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(Path),
    Constant(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut reader = Reader::new(text)?;
        let nodes = reader.nodes(false)?;
        Ok(Self(nodes))
    }

    /// The text for a document.
    pub(crate) fn render(&self, root: &Value) -> String {
        let mut out = String::new();
        render(&self.0, root, root, &mut out);
        out
    }
}

impl Path {
    /// Reads one path: `{.a.b}`, or without braces or dot `.a.b` and `a.b`, as kubectl's columns have it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let dotted = if inner.starts_with(['.', '[', '$', '@']) { inner.to_owned() } else { format!(".{inner}") };
        let mut reader = Reader::new(&dotted)?;
        let path = reader.path()?;
        reader.end()?;
        Ok(path)
    }

    /// The values that it leads to.
    pub(crate) fn values<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        self.from(root, root)
    }

    fn from<'a>(&self, root: &'a Value, here: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![if self.from_root { root } else { here }];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.values(root, value)).collect();
        }
        found
    }
}

impl Step {
    fn values<'a>(&self, root: &'a Value, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(name) => value.get(name).into_iter().collect(),
            Self::All => match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Self::Deep => {
                let mut found = Vec::new();
                deep(value, &mut found);
                found
            }
            Self::Index(index) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                position(*index, items.len()).and_then(|at| items.get(at)).into_iter().collect()
            }
            Self::Slice { from, to, by } => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let bound = |index: Option<i64>, absent: usize| {
                    index.map_or(absent, |index| position(index, items.len()).unwrap_or(0).min(items.len()))
                };
                let (from, to) = (bound(*from, 0), bound(*to, items.len()));
                items.get(from..to).unwrap_or_default().iter().step_by(*by).collect()
            }
            Self::Union(steps) => steps.iter().flat_map(|step| step.values(root, value)).collect(),
            Self::Where(filter) => {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                items.iter().filter(|item| filter.holds(root, item)).collect()
            }
        }
    }
}

/// Where an index points, counted from the end where it is negative.
fn position(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    usize::try_from(if index < 0 { index + length } else { index }).ok()
}

fn deep<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    found.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| deep(item, found)),
        Value::Object(map) => map.values().for_each(|item| deep(item, found)),
        _ => {}
    }
}

impl Filter {
    fn holds(&self, root: &Value, item: &Value) -> bool {
        let left = self.left.values(root, item);
        let Some((test, right)) = &self.test else { return !left.is_empty() };
        let right = right.values(root, item);
        match (left.first(), right.first()) {
            (Some(left), Some(right)) => compare(left, *test, right),
            _ => false,
        }
    }
}

impl Operand {
    fn values<'a>(&'a self, root: &'a Value, item: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Path(path) => path.from(root, item),
            Self::Constant(value) => vec![value],
        }
    }
}

fn compare(left: &Value, test: Test, right: &Value) -> bool {
    use std::cmp::Ordering;
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left.partial_cmp(&right),
        _ => Some(text(left).cmp(&text(right))),
    };
    match test {
        Test::Equal => order == Some(Ordering::Equal),
        Test::NotEqual => order != Some(Ordering::Equal),
        Test::Less => order == Some(Ordering::Less),
        Test::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Test::Greater => order == Some(Ordering::Greater),
        Test::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}

/// A value as it is printed: texts without quotes, the rest as JSON.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn render(nodes: &[Node], root: &Value, here: &Value, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Values(path) => {
                for (at, value) in path.from(root, here).into_iter().enumerate() {
                    let gap = if at == 0 { "" } else { " " };
                    // Writing into a text does not fail.
                    let _ = write!(out, "{gap}{}", text(value));
                }
            }
            Node::Range(path, body) => {
                for item in path.from(root, here) {
                    render(body, root, item, out);
                }
            }
        }
    }
}

/// Reads a template from its start.
struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Result<Self> {
        if text.len() > MAX_TEMPLATE_BYTES {
            bail!("a JSONPath template may have at most {MAX_TEMPLATE_BYTES} bytes; this one has {}", text.len());
        }
        Ok(Self { text, at: 0 })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn wrong<T>(&self, why: &str) -> Result<T> {
        bail!("JSONPath {:?}: at character {}: {why}", self.text, self.text[..self.at].chars().count() + 1)
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.skip(token) { Ok(()) } else { self.wrong(&format!("{token:?} is expected")) }
    }

    fn end(&self) -> Result<()> {
        if self.rest().is_empty() { Ok(()) } else { self.wrong("one path is expected, and nothing after it") }
    }

    /// Text and expressions, up to the end, or to `{end}` within a range.
    fn nodes(&mut self, in_range: bool) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        loop {
            let plain = self.rest().split('{').next().unwrap_or_default();
            if !plain.is_empty() {
                nodes.push(Node::Text(plain.to_owned()));
                self.at += plain.len();
            }
            if !self.skip("{") {
                if in_range {
                    return self.wrong("{end} is missing");
                }
                return Ok(nodes);
            }
            self.spaces();
            if self.skip("end") {
                self.close()?;
                if !in_range {
                    return self.wrong("{end} without {range}");
                }
                return Ok(nodes);
            }
            if self.skip("range ") {
                self.spaces();
                let path = self.path()?;
                self.close()?;
                nodes.push(Node::Range(path, self.nodes(true)?));
                continue;
            }
            let node = match self.peek() {
                Some('"' | '\'') => Node::Text(self.quoted()?),
                _ => Node::Values(self.path()?),
            };
            self.close()?;
            nodes.push(node);
        }
    }

    fn close(&mut self) -> Result<()> {
        self.spaces();
        self.expect("}")
    }

    fn quoted(&mut self) -> Result<String> {
        let quote = self.take();
        let mut out = String::new();
        loop {
            match self.take() {
                None => return self.wrong("the quote is not closed"),
                next if next == quote => return Ok(out),
                Some('\\') => match self.take() {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some(other) => out.push(other),
                    None => return self.wrong("the quote is not closed"),
                },
                Some(other) => out.push(other),
            }
        }
    }

    fn path(&mut self) -> Result<Path> {
        let mut path = Path::default();
        match self.peek() {
            Some('$') => {
                path.from_root = true;
                self.at += 1;
            }
            Some('@') => self.at += 1,
            Some('.' | '[') => {}
            _ => return self.wrong("a path is expected, as .metadata.name; functions are not supported"),
        }
        loop {
            if self.skip("..") {
                path.steps.push(Step::Deep);
                if self.peek() != Some('[') {
                    path.steps.push(self.field()?);
                }
            } else if self.skip(".") {
                // A lone dot is the value itself.
                if self.peek().is_some_and(|c| !"[} )".contains(c)) {
                    path.steps.push(self.field()?);
                }
            } else if self.skip("[") {
                path.steps.push(self.bracket()?);
            } else {
                return Ok(path);
            }
        }
    }

    fn field(&mut self) -> Result<Step> {
        if self.skip("*") {
            return Ok(Step::All);
        }
        let mut name = String::new();
        while let Some(next) = self.peek() {
            if ".[]{}() =!<>,|\"'".contains(next) {
                break;
            }
            self.take();
            // `\.` is a dot within a name, as in the keys of labels.
            let next = if next == '\\' { self.take().unwrap_or('\\') } else { next };
            name.push(next);
        }
        if name.is_empty() { self.wrong("the name of a field is expected") } else { Ok(Step::Field(name)) }
    }

    fn bracket(&mut self) -> Result<Step> {
        self.spaces();
        if self.skip("?(") {
            let filter = self.filter()?;
            self.expect(")")?;
            self.spaces();
            self.expect("]")?;
            return Ok(Step::Where(Box::new(filter)));
        }
        let mut steps = Vec::new();
        loop {
            self.spaces();
            steps.push(self.subscript()?);
            self.spaces();
            if self.skip("]") {
                break;
            }
            self.expect(",")?;
        }
        Ok(if steps.len() == 1 { steps.remove(0) } else { Step::Union(steps) })
    }

    fn subscript(&mut self) -> Result<Step> {
        match self.peek() {
            Some('*') => {
                self.at += 1;
                Ok(Step::All)
            }
            Some('"' | '\'') => Ok(Step::Field(self.quoted()?)),
            _ => {
                let from = self.integer();
                if !self.skip(":") {
                    return match from {
                        Some(index) => Ok(Step::Index(index)),
                        None => self.wrong("an index, a slice, a quoted name, * or ?(...) is expected"),
                    };
                }
                let to = self.integer();
                let by = if self.skip(":") { self.integer() } else { None };
                match usize::try_from(by.unwrap_or(1)) {
                    Ok(by) if by > 0 => Ok(Step::Slice { from, to, by }),
                    _ => self.wrong("the step of a slice must be above zero"),
                }
            }
        }
    }

    fn integer(&mut self) -> Option<i64> {
        let length = self.rest().find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(self.rest().len());
        let number = self.rest()[..length].parse().ok()?;
        self.at += length;
        Some(number)
    }

    fn filter(&mut self) -> Result<Filter> {
        self.spaces();
        let left = self.operand()?;
        self.spaces();
        let tests = [
            ("==", Test::Equal),
            ("!=", Test::NotEqual),
            ("<=", Test::LessOrEqual),
            (">=", Test::GreaterOrEqual),
            ("<", Test::Less),
            (">", Test::Greater),
        ];
        for (token, test) in tests {
            if self.skip(token) {
                self.spaces();
                let right = self.operand()?;
                self.spaces();
                return Ok(Filter { left, test: Some((test, right)) });
            }
        }
        if self.rest().starts_with("&&") || self.rest().starts_with("||") || self.rest().starts_with("=~") {
            return self.wrong("&&, || and =~ are not supported in filters, as in kubectl");
        }
        Ok(Filter { left, test: None })
    }

    fn operand(&mut self) -> Result<Operand> {
        match self.peek() {
            Some('"' | '\'') => Ok(Operand::Constant(Value::String(self.quoted()?))),
            Some('@' | '$' | '.') => Ok(Operand::Path(self.path()?)),
            _ => {
                let length = self.rest().find([')', ' ', '=', '!', '<', '>']).unwrap_or(self.rest().len());
                let word = &self.rest()[..length];
                match serde_json::from_str(word) {
                    Ok(value @ (Value::Number(_) | Value::Bool(_))) => {
                        self.at += length;
                        Ok(Operand::Constant(value))
                    }
                    _ => self.wrong("a path (@.field), a quoted text, a number, true or false is expected"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> Value {
        json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"hearth.dev/app": "web"}}, "n": 1,
             "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "False"}]}},
            {"metadata": {"name": "b"}, "n": 20, "status": {"conditions": [{"type": "Ready", "status": "False"}]}},
        ]})
    }

    #[test]
    fn templates_print_what_kubectl_prints() {
        for (template, expected) in [
            ("{.items[*].metadata.name}", "a b"),
            ("{.items[0].metadata.name}", "a"),
            ("{.items[-1].metadata.name}", "b"),
            ("{.items[7].metadata.name}", ""),
            ("{.items[0:1].metadata.name}", "a"),
            ("{.items[*]['metadata','n']}", r#"{"labels":{"hearth.dev/app":"web"},"name":"a"} 1 {"name":"b"} 20"#),
            (r#"{range .items[*]}{.metadata.name}{"\t"}{.n}{"\n"}{end}"#, "a\t1\nb\t20\n"),
            (r#"{.items[*].status.conditions[?(@.type=="Ready")].status}"#, "True False"),
            ("{range .items[?(@.n>3)]}{.metadata.name}={$.kind}{end}!", "b=List!"),
            ("{.items[?(@.metadata.labels)].metadata.name}", "a"),
            (r"{.items[0].metadata.labels.hearth\.dev/app}", "web"),
            ("{.items[0].metadata.labels['hearth.dev/app']}", "web"),
            ("{..name}", "a b"),
            ("{.kind}", "List"),
            ("x{.nothing.at.all}y", "xy"),
            ("{ .items[0].n }", "1"),
            ("{@.kind}", "List"),
            ("{.items[0].metadata.labels}", r#"{"hearth.dev/app":"web"}"#),
        ] {
            let parsed = Template::parse(template).expect(template);
            assert_eq!(parsed.render(&pods()), expected, "{template}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for (template, part) in [
            ("{.a", "\"}\" is expected"),
            ("{range .a}x", "{end} is missing"),
            ("{end}", "without {range}"),
            ("{len(.a)}", "functions are not supported"),
            (r#"{.a[?(@.b=="c" && @.d)]}"#, "\")\" is expected"),
            ("{.a[?(@.b && @.d)]}", "not supported in filters"),
            ("{.a[]}", "an index"),
            ("{.a[?(@.b==c)]}", "a quoted text"),
            ("{.a[0:3:0]}", "above zero"),
            ("{\"abc}", "not closed"),
        ] {
            let error = Template::parse(template).expect_err(template).to_string();
            assert!(error.contains(part), "{template}: {error}");
        }
        assert!(Template::parse(&"{".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
    }

    #[test]
    fn paths_need_no_braces() {
        let root = json!({"a": {"b": [1, 2]}});
        for text in ["{.a.b[1]}", ".a.b[1]", "a.b[1]", "$.a.b[1]"] {
            assert_eq!(Path::parse(text).expect(text).values(&root), [&json!(2)], "{text}");
        }
        assert!(Path::parse(".a .b").is_err());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[{}.$@*?()\\[\\]'\"a-c0-2:=<&|, \\\\-]{0,40}") {
            if let Ok(template) = Template::parse(&text) {
                template.render(&json!({"a": [1, {"b": [0]}], "b": {"c": "x"}}));
            }
        }
    }
}
