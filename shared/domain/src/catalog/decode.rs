//! Serde over a [`Node`], so that the typed documents of the catalog keep their places in errors.

use crate::{
    span::{Place, Problem},
    yaml::{Key, Node, Value, join, shorten},
};
use serde::{
    Deserialize,
    de::{
        self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
    },
};
use std::fmt;

/// Reads a typed value; `skip` names keys of the top level that are somebody else's.
pub(super) fn from_node<'n, T: Deserialize<'n>>(node: &'n Node, skip: &[&str]) -> Result<T, Problem> {
    T::deserialize(At { node, skip, path: String::new() }).map_err(|e| Problem {
        place: Some(e.place.unwrap_or(node.place)),
        path: e.path,
        message: e.message,
    })
}

#[derive(Debug)]
struct Error {
    place: Option<Place>,
    path: String,
    message: String,
}

impl Error {
    /// The innermost place is the right one.
    fn at(mut self, place: Place, path: &str) -> Self {
        if self.place.is_none() {
            self.place = Some(place);
            self.path = path.into();
        }
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        Error { place: None, path: String::new(), message: msg.to_string() }
    }
    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format!("must be {expected}, not {}", shorten(&found.to_string())))
    }
    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let near = crate::span::suggestion(field, expected.iter().copied());
        Self::custom(format!("unknown key `{}`{near}; known keys are: {}", shorten(field), expected.join(", ")))
    }
    fn missing_field(field: &'static str) -> Self {
        Self::custom(format!("the key `{field}` is missing; add `{field}: ...`"))
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let near = crate::span::suggestion(variant, expected.iter().copied());
        Self::custom(format!("must be one of {}, not {:?}{near}", expected.join(", "), shorten(variant)))
    }
}

struct At<'n, 's> {
    node: &'n Node,
    skip: &'s [&'s str],
    path: String,
}

impl<'n> At<'n, '_> {
    fn wrap<T>(node: &Node, path: &str, r: Result<T, Error>) -> Result<T, Error> {
        r.map_err(|e| e.at(node.place, path))
    }

    fn visit<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Error> {
        let At { node, skip, path } = self;
        let r = match &node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(n, _) => match (n.as_u64(), n.as_i64()) {
                (Some(u), _) => visitor.visit_u64(u),
                (_, Some(i)) => visitor.visit_i64(i),
                _ => visitor.visit_f64(n.as_f64().unwrap_or_default()),
            },
            Value::Text(t) => visitor.visit_borrowed_str(t),
            Value::List(l) => visitor.visit_seq(Items { items: l.iter(), index: 0, path: &path }),
            Value::Map(m) => visitor.visit_map(Entries { entries: m.iter(), value: None, skip, path: &path }),
        };
        Self::wrap(node, &path, r)
    }
}

impl<'de> Deserializer<'de> for At<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(visitor)
    }

    /// Where text is wanted, a number or boolean is what its author wrote: `zone: 1`, `rank: 1.10`.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (&self.node.value, self.node.as_word()) {
            (Value::Number(..) | Value::Bool(_), Some(w)) => {
                let (node, path) = (self.node, self.path);
                Self::wrap(node, &path, visitor.visit_string(w))
            }
            _ => self.visit(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let At { node, path, .. } = self;
        let r = match node.as_word() {
            Some(w) => visitor.visit_enum(Word(w)),
            None => Err(de::Error::custom(format!("must be one word, not {}", node.kind()))),
        };
        Self::wrap(node, &path, r)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// All enums of the catalog that serde does not buffer are plain words.
struct Word(String);

impl<'n> EnumAccess<'n> for Word {
    type Error = Error;
    type Variant = Unit;
    fn variant_seed<T: DeserializeSeed<'n>>(self, seed: T) -> Result<(T::Value, Unit), Error> {
        seed.deserialize(self.0.into_deserializer()).map(|v| (v, Unit))
    }
}

struct Unit;

impl<'n> VariantAccess<'n> for Unit {
    type Error = Error;
    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }
    fn newtype_variant_seed<T: DeserializeSeed<'n>>(self, _: T) -> Result<T::Value, Error> {
        Err(de::Error::custom("takes no value here"))
    }
    fn tuple_variant<V: Visitor<'n>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("takes no value here"))
    }
    fn struct_variant<V: Visitor<'n>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("takes no value here"))
    }
}

struct Items<'n, 'p> {
    items: std::slice::Iter<'n, Node>,
    index: usize,
    path: &'p str,
}

impl<'n> SeqAccess<'n> for Items<'n, '_> {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.path, self.index);
        self.index += 1;
        seed.deserialize(At { node, skip: &[], path: path.clone() }).map(Some).map_err(|e| e.at(node.place, &path))
    }
}

struct Entries<'n, 's> {
    entries: std::slice::Iter<'n, (Key, Node)>,
    value: Option<(&'n Key, &'n Node)>,
    skip: &'s [&'s str],
    path: &'s str,
}

impl<'n> MapAccess<'n> for Entries<'n, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'n>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        for (key, node) in self.entries.by_ref() {
            // A key without a value counts as absent, as in flows.
            if self.skip.contains(&key.name.as_str()) || matches!(node.value, Value::Null) {
                continue;
            }
            self.value = Some((key, node));
            let deserializer: de::value::BorrowedStrDeserializer<'n, Error> =
                de::value::BorrowedStrDeserializer::new(&key.name);
            return seed.deserialize(deserializer).map(Some).map_err(|e| e.at(key.place, self.path));
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'n>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let Some((key, node)) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        let path = join(self.path, &shorten(&key.name));
        // What serde buffers (types with a tag) fails after the node was read.
        seed.deserialize(At { node, skip: &[], path: path.clone() }).map_err(|e| e.at(node.place, &path))
    }
}
