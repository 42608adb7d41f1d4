//! Holding JSON against the schema of a kind. The schemas come from the types themselves (schemars); they
//! are boiled down once to shapes that all kinds share, without the descriptions.

use std::{
    collections::{BTreeMap, HashMap},
    sync::LazyLock,
};

use schemars::SchemaGenerator;
use serde_json::Value;

use crate::{kinds, quantity, status::Cause};

/// Mistakes that are listed at most, so that a hostile object has a bounded answer.
const MAX_CAUSES: usize = 50;

/// What some JSON must look like.
#[derive(Debug)]
enum Shape {
    Any,
    Text,
    Base64,
    Boolean,
    Number,
    Integer { min: i64, max: i64 },
    IntOrText,
    Quantity,
    OneOf(Vec<Box<str>>),
    List(Box<Shape>),
    Map(Box<Shape>),
    Struct(Fields),
    Named(Box<str>),
}

#[derive(Debug, Default)]
struct Fields {
    known: BTreeMap<Box<str>, Shape>,
    required: Vec<Box<str>>,
}

struct Shapes {
    roots: HashMap<&'static str, Shape>,
    named: HashMap<Box<str>, Shape>,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(Shapes::build);

/// Checks an object of the kind `root`; see [`super::KindInfo::check_schema`].
pub(super) fn check(root: &str, object: &mut Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(shape) = SHAPES.roots.get(root) {
        shape.check(object, &mut String::new(), &mut causes);
    }
    causes.truncate(MAX_CAUSES);
    causes
}

impl Shapes {
    fn build() -> Self {
        let mut generator = SchemaGenerator::default();
        let mut roots = HashMap::new();
        macro_rules! whole {
            ($($name:ident),*) => {$(
                roots.insert(stringify!($name), boil(generator.subschema_for::<kinds::$name>().as_value()));
            )*};
        }
        whole!(Namespace, Node, Pod, ConfigMap, Secret, PersistentVolumeClaim, Event, Service, Deployment, ReplicaSet);
        let meta = |generator: &mut SchemaGenerator| boil(generator.subschema_for::<kinds::ObjectMeta>().as_value());
        macro_rules! own {
            ($($name:literal $spec:ident $($status:ident)?),*) => {$(
                let mut fields = Fields { required: vec!["metadata".into(), "spec".into()], ..Fields::default() };
                fields.known.insert("apiVersion".into(), Shape::Text);
                fields.known.insert("kind".into(), Shape::Text);
                fields.known.insert("metadata".into(), meta(&mut generator));
                fields.known.insert("spec".into(), boil(generator.subschema_for::<kinds::$spec>().as_value()));
                $(fields.known.insert("status".into(), boil(generator.subschema_for::<kinds::$status>().as_value()));)?
                roots.insert($name, Shape::Struct(fields));
            )*};
        }
        own!("App" AppSpec, "Install" InstallSpec InstallStatus, "Device" DeviceSpec DeviceStatus, "Route" RouteSpec RouteStatus,
            "DNSEndpoint" DNSEndpointSpec DNSEndpointStatus, "Relay" RelaySpec, "Certificate" CertificateSpec CertificateStatus);
        let named = generator
            .take_definitions(true)
            .iter()
            .map(|(name, schema)| (name.as_str().into(), boil(schema)))
            .collect();
        Self { roots, named }
    }
}

/// A part of a kind's schema, to be walked from the kind down.
#[derive(Clone, Copy, Debug)]
pub struct SchemaView(&'static Shape);

/// Anything.
static ANY: Shape = Shape::Any;

/// The schema of the kind `root`.
pub(super) fn view(root: &str) -> SchemaView {
    SchemaView(SHAPES.roots.get(root).unwrap_or(&ANY))
}

impl SchemaView {
    fn shape(self) -> &'static Shape {
        match self.0 {
            Shape::Named(name) => SHAPES.named.get(name).unwrap_or(&ANY),
            other => other,
        }
    }

    /// What its fields are in: of a list or map, that of its items.
    fn inner(self) -> &'static Shape {
        match self.shape() {
            Shape::List(item) | Shape::Map(item) => Self(item).inner(),
            other => other,
        }
    }

    /// A field; of a list or map, one of its items.
    pub fn field(self, name: &str) -> Option<Self> {
        match self.inner() {
            Shape::Struct(fields) => fields.known.get(name).map(Self),
            _ => None,
        }
    }

    /// The fields, each with its name and whether it is required; of a list or map, those of its items.
    pub fn fields(self) -> Vec<(&'static str, Self, bool)> {
        let Shape::Struct(fields) = self.inner() else { return Vec::new() };
        let known = fields.known.iter();
        known.map(|(name, shape)| (&**name, Self(shape), fields.required.contains(name))).collect()
    }

    /// What an item of this list or map looks like.
    pub fn item(self) -> Option<Self> {
        match self.shape() {
            Shape::List(item) | Shape::Map(item) => Some(Self(item)),
            _ => None,
        }
    }

    /// Whether it has fields of its own, which the schema names. A map has keys that people choose.
    pub fn is_struct(self) -> bool {
        matches!(self.shape(), Shape::Struct(_))
    }

    /// The words that it may be; empty where it is free.
    pub fn words(self) -> Vec<&'static str> {
        match self.shape() {
            Shape::OneOf(words) => words.iter().map(|word| &**word).collect(),
            _ => Vec::new(),
        }
    }

    /// Its type as `kubectl explain` writes it: `string`, `[]Container`, `map[string]string`.
    pub fn type_name(self) -> String {
        if let Shape::Named(name) = self.0 {
            // The types of Kubernetes have the names of their packages in front.
            return name.rsplit('.').next().unwrap_or(name).to_owned();
        }
        match self.0 {
            Shape::List(item) => format!("[]{}", Self(item).type_name()),
            Shape::Map(item) => format!("map[string]{}", Self(item).type_name()),
            Shape::Any | Shape::Struct(_) | Shape::Named(_) => "Object".into(),
            Shape::Text | Shape::OneOf(_) => "string".into(),
            Shape::Base64 => "string, base64".into(),
            Shape::Boolean => "boolean".into(),
            Shape::Number => "number".into(),
            Shape::Integer { .. } => "integer".into(),
            Shape::IntOrText => "IntOrString".into(),
            Shape::Quantity => "Quantity".into(),
        }
    }
}

fn boil(schema: &Value) -> Shape {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return if name.ends_with("resource.Quantity") { Shape::Quantity } else { Shape::Named(name.into()) };
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        return Shape::IntOrText;
    }
    // An optional field: the other alternative than null.
    for alternatives in ["anyOf", "oneOf", "allOf"] {
        if let Some(list) = schema.get(alternatives).and_then(Value::as_array) {
            let mut others = list.iter().filter(|one| one.get("type").and_then(Value::as_str) != Some("null"));
            return match (others.next(), others.next()) {
                (Some(one), None) => boil(one),
                _ => words(list).map_or(Shape::Any, Shape::OneOf),
            };
        }
    }
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        return Shape::OneOf(list.iter().filter_map(|one| one.as_str().map(Into::into)).collect());
    }
    // The only word of its kind.
    if let Some(word) = schema.get("const").and_then(Value::as_str) {
        return Shape::OneOf(vec![word.into()]);
    }
    let kind = match schema.get("type") {
        Some(Value::String(kind)) => kind.as_str(),
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or_default()
        }
        _ => return Shape::Any,
    };
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "string" if format == "byte" => Shape::Base64,
        "string" => Shape::Text,
        "boolean" => Shape::Boolean,
        "number" => Shape::Number,
        "integer" => match format {
            "int32" => Shape::Integer { min: i32::MIN.into(), max: i32::MAX.into() },
            "uint32" => Shape::Integer { min: 0, max: u32::MAX.into() },
            "uint64" => Shape::Integer { min: 0, max: i64::MAX },
            _ => Shape::Integer { min: i64::MIN, max: i64::MAX },
        },
        "array" => Shape::List(Box::new(schema.get("items").map_or(Shape::Any, boil))),
        "object" => object_shape(schema),
        _ => Shape::Any,
    }
}

fn words(list: &[Value]) -> Option<Vec<Box<str>>> {
    let word =
        |one: &Value| one.get("const").or_else(|| one.get("enum")?.get(0)).and_then(Value::as_str).map(Into::into);
    list.iter().map(word).collect()
}

fn object_shape(schema: &Value) -> Shape {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return match schema.get("additionalProperties") {
            Some(values) if values.is_object() => Shape::Map(Box::new(boil(values))),
            _ => Shape::Any,
        };
    };
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    Shape::Struct(Fields {
        known: properties.iter().map(|(name, schema)| (name.as_str().into(), boil(schema))).collect(),
        required: required.filter_map(|name| name.as_str().map(Into::into)).collect(),
    })
}

impl Shape {
    fn check(&self, value: &mut Value, path: &mut String, causes: &mut Vec<Cause>) {
        // null means absent, as in Kubernetes
        if !value.is_null() {
            self.check_present(value, path, causes);
        }
    }

    /// Checks a value that is there even where it is null: in a list it takes a place, and nothing drops it.
    fn check_present(&self, value: &mut Value, path: &mut String, causes: &mut Vec<Cause>) {
        if causes.len() >= MAX_CAUSES {
            return;
        }
        match self {
            Self::Any if value.is_null() => wrong_type(value, "a value", path, causes),
            Self::Any => {}
            Self::Named(name) => SHAPES.named.get(name).unwrap_or(&Self::Any).check_present(value, path, causes),
            Self::Quantity => {
                if let Value::Number(number) = value {
                    *value = Value::String(number.to_string());
                }
                match value.as_str().map(quantity::millis) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => causes.push(Cause::new(path.as_str(), error.to_string())),
                    None => wrong_type(value, "a quantity", path, causes),
                }
            }
            Self::OneOf(words) => match value.as_str() {
                Some(word) if words.iter().any(|one| **one == *word) => {}
                Some(word) => {
                    causes.push(Cause::new(
                        path.as_str(),
                        format!("{word:?} is not supported; must be one of {}", words.join(", ")),
                    ));
                }
                None => wrong_type(value, "a string", path, causes),
            },
            Self::List(item) => match value.as_array_mut() {
                Some(items) => {
                    for (index, one) in items.iter_mut().enumerate() {
                        within(path, &format!("[{index}]"), |path| item.check_present(one, path, causes));
                    }
                }
                None => wrong_type(value, "a list", path, causes),
            },
            Self::Map(item) => match value.as_object_mut() {
                Some(map) => {
                    for (key, one) in map {
                        within(path, &format!(".{key}"), |path| {
                            item.check(one, path, causes);
                        });
                    }
                }
                None => wrong_type(value, "a map", path, causes),
            },
            Self::Struct(fields) => fields.check(value, path, causes),
            scalar => scalar.check_scalar(value, path, causes),
        }
    }

    fn check_scalar(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        use base64::Engine as _;
        let expected = match (self, value) {
            (Self::Text | Self::IntOrText, Value::String(_))
            | (Self::Boolean, Value::Bool(_))
            | (Self::Number, Value::Number(_)) => return,

            (Self::IntOrText, Value::Number(number)) if number.is_i64() => return,
            (Self::Integer { min, max }, Value::Number(number)) if number.is_i64() || number.is_u64() => {
                if !number.as_i64().is_some_and(|n| (*min..=*max).contains(&n)) {
                    causes.push(Cause::new(path, format!("must be from {min} to {max}")));
                }
                return;
            }
            (Self::Base64, Value::String(text)) => {
                if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
                    causes
                        .push(Cause::new(path, "must be base64 (RFC 4648 section 4); plain text goes into stringData"));
                }
                return;
            }
            (Self::Text | Self::Base64, _) => "a string",
            (Self::Boolean, _) => "true or false",
            (Self::Number, _) => "a number",
            (Self::Integer { .. }, _) => "an integer",
            _ => "an integer or a string",
        };
        wrong_type(value, expected, path, causes);
    }
}

impl Fields {
    fn check(&self, value: &mut Value, path: &mut String, causes: &mut Vec<Cause>) {
        let Some(map) = value.as_object_mut() else {
            return wrong_type(value, "a map", path, causes);
        };
        for (key, one) in map.iter_mut() {
            within(path, &format!(".{key}"), |path| match self.known.get(key.as_str()) {
                Some(shape) => shape.check(one, path, causes),
                None => causes.push(Cause::new(path.as_str(), self.unknown(key))),
            });
        }
        for name in &self.required {
            if map.get(&**name).is_none_or(Value::is_null) {
                within(path, &format!(".{name}"), |path| {
                    causes.push(Cause::new(path.as_str(), "required"));
                });
            }
        }
    }

    fn unknown(&self, key: &str) -> String {
        let near = self.known.keys().map(|name| (distance(name, key), name)).min();
        match near {
            Some((distance, name)) if distance <= 2 => {
                format!("unknown field; did you mean {name:?}?")
            }
            _ => "unknown field".into(),
        }
    }
}

fn within(path: &mut String, step: &str, check: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(if length == 0 { step.trim_start_matches('.') } else { step });
    check(path);
    path.truncate(length);
}

fn wrong_type(value: &Value, expected: &str, path: &str, causes: &mut Vec<Cause>) {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    causes.push(Cause::new(path, format!("must be {expected}, is {found}")));
}

/// The edit distance of two names without regard to case; large ones are cut off.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.to_lowercase().into_bytes(), b.to_lowercase().into_bytes());
    if a.len().abs_diff(b.len()) > 2 || a.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let cost = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
