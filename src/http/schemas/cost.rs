//! How long it may take to check a value by a schema, found out before it is done. Pure.
//!
//! Both come from outside, and a check that branches takes twice as long with each level: a schema of a few hundred
//! bytes, or harmless recursive types and args of 64 levels, can keep a processor busy for ever. A validator cannot be
//! interrupted. So its steps are reckoned first, each pair of a schema's part and a value's part once however often the
//! check comes by it. What would take too long is not checked; what could not end at all is no schema.
//!
//! Remembered are values that have others inside. At one that has none a check does no less than the reckoning, so what
//! is reckoned again there is no more than what may be done.
//!
//! It is reckoned from above: as if every branch were tried, every pattern slow, and every alternative gone through twice
//! (once to see that it does not fit, once to say why).

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Deepest chain of a schema's parts that look at the same value.
const CHAIN_MAX: u32 = 64;
/// Most parts that may look at the same value.
const TREE_MAX: u64 = 10_000;
/// Most patterns of a schema: each may take a quarter of a megabyte.
const PATTERNS_MAX: usize = 100;
/// Deepest nesting of a check: each level takes some kilobytes of the stack.
const NESTED_MAX: u32 = 600;
/// Most pairs of a part and a value whose cost is remembered: some megabytes.
const KNOWN_MAX: usize = 200_000;
/// What a byte of text costs at a pattern, in steps.
const PATTERN_COST: u64 = 4;
/// What it takes to see whether a number is a multiple of a fraction (measured: 45 µs at 9e307, of 0.01).
const FRACTION: u64 = 50;
/// Members whose meaning depends on more than the schema itself, or that no derived schema has.
const UNSUPPORTED: [&str; 6] =
    ["$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary"];

/// One part of a schema.
#[derive(Debug, Default)]
struct Part {
    /// What it costs by itself.
    own: u64,
    /// Parts that look at the same value, and how often.
    here: Vec<(usize, u64)>,
    /// By the member's name.
    members: HashMap<String, usize>,
    /// Perhaps at any member.
    any_member: Vec<usize>,
    /// At the members' names.
    names: Vec<usize>,
    /// By the item's place.
    first_items: Vec<usize>,
    /// Perhaps at any item.
    any_item: Vec<usize>,
    /// For each member or item, those that look at the same value do it once more.
    unevaluated: bool,
    unique: bool,
    patterns: u64,
    name_patterns: u64,
}

/// A schema's parts.
#[derive(Debug)]
pub(super) struct Costs {
    parts: Vec<Part>,
}

/// It would take too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMuch;

impl Costs {
    /// Takes a schema apart.
    ///
    /// # Errors
    /// Why args cannot be checked by it in bounded time.
    pub(super) fn of(schema: &Value) -> Result<Self, String> {
        let mut reading = Reading::new(schema);
        reading.part(schema);
        while let Some((id, schema)) = reading.todo.pop() {
            let part = reading.read(schema, id == 0)?;
            reading.parts[id] = part;
        }
        let costs = Self { parts: reading.parts };
        let mut sizes = vec![Size::Unknown; costs.parts.len()];
        for part in 0..costs.parts.len() {
            costs.size(part, 0, &mut sizes)?;
        }
        Ok(costs)
    }

    /// How many parts look at a value that `part` looks at, and the longest chain of them.
    fn size(&self, part: usize, depth: u32, sizes: &mut [Size]) -> Result<(u64, u32), String> {
        let too_long = || format!("nests more than {CHAIN_MAX} references or alternatives");
        match sizes[part] {
            Size::Known(size, chain) => return Ok((size, chain)),
            Size::Open => return Err("refers to itself without end".to_owned()),
            Size::Unknown if depth > CHAIN_MAX => return Err(too_long()),
            Size::Unknown => {}
        }
        sizes[part] = Size::Open;
        let (mut size, mut chain) = (1_u64, 1);
        for (other, times) in &self.parts[part].here {
            let (others, below) = self.size(*other, depth + 1, sizes)?;
            size = size.saturating_add(others.saturating_mul(*times));
            chain = chain.max(below + 1);
        }
        if size > TREE_MAX {
            return Err(format!("looks at a value in more than {TREE_MAX} ways"));
        }
        if chain > CHAIN_MAX {
            return Err(too_long());
        }
        sizes[part] = Size::Known(size, chain);
        Ok((size, chain))
    }

    /// The steps that it takes to check `value`, at most `budget`.
    ///
    /// # Errors
    /// [`TooMuch`], if it takes more, or to find that out takes too long.
    pub(super) fn check(&self, value: &Value, budget: u64) -> Result<u64, TooMuch> {
        let mut reckoning = Reckoning { costs: self, known: HashMap::new(), left: budget };
        reckoning.at(0, value, 0).and_then(|cost| if cost > budget { Err(TooMuch) } else { Ok(cost) })
    }
}

#[derive(Debug, Clone, Copy)]
enum Size {
    Unknown,
    Open,
    Known(u64, u32),
}

/// A schema on its way to its parts.
struct Reading<'a> {
    root: &'a Value,
    parts: Vec<Part>,
    /// By where they lie in memory.
    ids: HashMap<*const Value, usize>,
    todo: Vec<(usize, &'a Value)>,
    patterns: usize,
}

impl<'a> Reading<'a> {
    fn new(root: &'a Value) -> Self {
        Self { root, parts: Vec::new(), ids: HashMap::new(), todo: Vec::new(), patterns: 0 }
    }

    fn part(&mut self, schema: &'a Value) -> usize {
        *self.ids.entry(std::ptr::from_ref(schema)).or_insert_with(|| {
            self.parts.push(Part::default());
            self.todo.push((self.parts.len() - 1, schema));
            self.parts.len() - 1
        })
    }

    fn parts_of(&mut self, schemas: &'a Value) -> Vec<usize> {
        match schemas {
            Value::Array(schemas) => schemas.iter().map(|schema| self.part(schema)).collect(),
            Value::Object(_) | Value::Bool(_) => vec![self.part(schemas)],
            _ => Vec::new(),
        }
    }

    fn each_of(&mut self, schemas: &'a Value) -> Vec<(&'a String, usize)> {
        let members = schemas.as_object().into_iter().flatten();
        members
            .filter(|(_, schema)| !schema.is_array())
            .map(|(name, schema)| (name, self.part(schema)))
            .collect()
    }

    fn read(&mut self, schema: &'a Value, is_root: bool) -> Result<Part, String> {
        let mut part = Part { own: 1, ..Part::default() };
        let Value::Object(members) = schema else { return Ok(part) };
        if let Some(name) = UNSUPPORTED.iter().find(|name| members.contains_key(**name)) {
            return Err(format!("has {name}, which is not supported"));
        }
        if !is_root && (members.contains_key("$id") || members.contains_key("$schema")) {
            return Err("has an $id or a $schema in a part of it, which is not supported".to_owned());
        }
        for (name, value) in members {
            self.member(&mut part, name, value)?;
        }
        if self.patterns > PATTERNS_MAX {
            return Err(format!("has more than {PATTERNS_MAX} patterns"));
        }
        Ok(part)
    }

    fn member(&mut self, part: &mut Part, name: &str, value: &'a Value) -> Result<(), String> {
        part.own += 1;
        let here = |ids: Vec<usize>, times| ids.into_iter().map(move |id| (id, times));
        match name {
            "$ref" => {
                let target = self.target(value)?;
                part.here.push((self.part(target), 1));
            }
            "allOf" | "not" | "then" | "else" => part.here.extend(here(self.parts_of(value), 1)),
            "anyOf" | "oneOf" | "if" => part.here.extend(here(self.parts_of(value), 2)),
            "dependentSchemas" | "dependencies" => {
                part.here.extend(self.each_of(value).into_iter().map(|(_, id)| (id, 1)));
            }
            "properties" => {
                let each = self.each_of(value).into_iter().map(|(name, id)| (name.clone(), id));
                part.members.extend(each);
            }
            "patternProperties" => {
                let each = self.each_of(value);
                self.patterns += each.len();
                part.name_patterns += each.len() as u64;
                part.any_member.extend(each.into_iter().map(|(_, id)| id));
            }
            "additionalProperties" => part.any_member.extend(self.parts_of(value)),
            "unevaluatedProperties" => {
                part.any_member.extend(self.parts_of(value));
                part.unevaluated = true;
            }
            "propertyNames" => part.names.extend(self.parts_of(value)),
            "prefixItems" => part.first_items.extend(self.parts_of(value)),
            // An array of schemas in older drafts.
            "items" if value.is_array() => part.first_items.extend(self.parts_of(value)),
            "items" | "contains" | "additionalItems" => part.any_item.extend(self.parts_of(value)),
            "unevaluatedItems" => {
                part.any_item.extend(self.parts_of(value));
                part.unevaluated = true;
            }
            "uniqueItems" => part.unique = true,
            // Divided with as many digits as it takes.
            "multipleOf" if !value.is_u64() => part.own += FRACTION,
            "pattern" => {
                self.patterns += 1;
                part.patterns += 1;
            }
            "enum" | "const" | "required" | "dependentRequired" => part.own += size_of(value),
            _ => {}
        }
        Ok(())
    }

    /// What a `$ref` refers to: something in the same schema.
    fn target(&self, reference: &Value) -> Result<&'a Value, String> {
        let text = reference.as_str().unwrap_or_default();
        let pointer = text.strip_prefix('#').filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
        // What is escaped in a derived schema are the names of types, if at all.
        let target = pointer.map(unescaped).and_then(|pointer| self.root.pointer(&pointer));
        target.ok_or_else(|| {
            format!("refers to {:?}, which is no part of it", crate::job::dead::clip(text, 100))
        })
    }
}

/// A fragment without its percent signs.
fn unescaped(fragment: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), fragment.bytes());
    while let Some(byte) = rest.next() {
        let digits =
            rest.clone().take(2).map(|digit| char::from(digit).to_digit(16)).collect::<Option<Vec<u32>>>();
        match (byte, digits.as_deref()) {
            (b'%', Some(&[high, low])) => {
                bytes.push(u8::try_from(16 * high + low).unwrap_or(b'%'));
                rest.nth(1);
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How much there is to compare.
fn size_of(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(size_of).sum::<u64>(),
        Value::Object(members) => 1 + members.values().map(|value| 1 + size_of(value)).sum::<u64>(),
        Value::String(text) => 1 + text.len() as u64 / 64,
        _ => 1,
    }
}

/// A reckoning of one check.
struct Reckoning<'a> {
    costs: &'a Costs,
    /// By part and value, of values that have others inside.
    known: HashMap<(usize, *const Value), u64>,
    /// Steps of the reckoning itself.
    left: u64,
}

impl Reckoning<'_> {
    fn spend(&mut self, steps: u64) -> Result<(), TooMuch> {
        self.left = self.left.checked_sub(steps).ok_or(TooMuch)?;
        Ok(())
    }

    fn at(&mut self, part: usize, value: &Value, depth: u32) -> Result<u64, TooMuch> {
        let is_empty = match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(members) => members.is_empty(),
            _ => true,
        };
        let key = (!is_empty).then(|| (part, std::ptr::from_ref(value)));
        if let Some(known) = key.and_then(|key| self.known.get(&key)) {
            return Ok(*known);
        }
        if depth > NESTED_MAX {
            return Err(TooMuch);
        }
        self.spend(1)?;
        let costs = self.costs;
        let part = &costs.parts[part];
        let mut cost = part.own;
        for (other, times) in &part.here {
            cost = cost.saturating_add(self.at(*other, value, depth + 1)?.saturating_mul(*times));
        }
        let mut inside = 0_u64;
        match value {
            Value::String(text) => cost = cost.saturating_add(text_cost(part.patterns, text.len())),
            Value::Array(items) => {
                if part.unevaluated {
                    cost = cost.saturating_mul(1 + items.len() as u64);
                }
                if part.unique {
                    let size = size_of(value);
                    self.spend(size)?;
                    let nested =
                        items.iter().filter(|item| item.is_array() || item.is_object()).count() as u64;
                    // What is nested may have to be compared with all the others.
                    inside = inside.saturating_add(size.saturating_mul(2.max(nested)));
                }
                for (place, item) in items.iter().enumerate() {
                    for other in part.first_items.get(place).into_iter().chain(&part.any_item) {
                        inside = inside.saturating_add(self.at(*other, item, depth + 1)?);
                    }
                }
            }
            Value::Object(members) => {
                if part.unevaluated {
                    cost = cost.saturating_mul(1 + members.len() as u64);
                }
                inside = self.members(part, members, depth)?;
            }
            _ => {}
        }
        let cost = cost.saturating_add(inside);
        if let Some(key) = key {
            if self.known.len() >= KNOWN_MAX {
                return Err(TooMuch);
            }
            self.known.insert(key, cost);
        }
        Ok(cost)
    }

    fn members(&mut self, part: &Part, members: &Map<String, Value>, depth: u32) -> Result<u64, TooMuch> {
        let mut cost = 0_u64;
        for (name, value) in members {
            let names = part.names.iter().map(|other| (*other, 1)).collect::<Vec<_>>();
            cost = cost
                .saturating_add(1 + text_cost(part.name_patterns, name.len()))
                .saturating_add(self.of_name(&names, name.len())?);
            for other in part.members.get(name).into_iter().chain(&part.any_member) {
                cost = cost.saturating_add(self.at(*other, value, depth + 1)?);
            }
        }
        Ok(cost)
    }

    /// At a member's name; how deep this goes is bounded by the schema.
    fn of_name(&mut self, parts: &[(usize, u64)], len: usize) -> Result<u64, TooMuch> {
        let mut cost = 0_u64;
        for (part, times) in parts {
            self.spend(1)?;
            let costs = self.costs;
            let part = &costs.parts[*part];
            let own = part.own + text_cost(part.patterns, len);
            let all = own.saturating_add(self.of_name(&part.here, len)?);
            cost = cost.saturating_add(all.saturating_mul(*times));
        }
        Ok(cost)
    }
}

/// What text costs at so many patterns, and by its length.
fn text_cost(patterns: u64, len: usize) -> u64 {
    let len = len as u64;
    len / 64 + patterns.saturating_mul(16 + len.saturating_mul(PATTERN_COST))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> String {
        Costs::of(schema).err().unwrap_or_default()
    }

    #[test]
    fn what_could_not_end_is_no_schema() {
        let chain = |first: &str, each: &dyn Fn(usize) -> Value, len: usize| {
            let parts: Map<String, Value> = (0..len).map(|n| (format!("a{n}"), each(n))).collect();
            json!({ "$ref": first, "$defs": parts })
        };
        let doubled = |n: usize| match n {
            20 => json!(true),
            n => {
                json!({ "allOf": [{ "$ref": format!("#/$defs/a{}", n + 1) }, { "$ref": format!("#/$defs/a{}", n + 1) }] })
            }
        };
        let long = |n: usize| match n {
            199 => json!(true),
            n => json!({ "$ref": format!("#/$defs/a{}", n + 1) }),
        };
        for (schema, word) in [
            (json!({ "$ref": "#" }), "itself"),
            (
                json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "anyOf": [{ "$ref": "#/$defs/a" }] } }, "$ref": "#/$defs/a" }),
                "itself",
            ),
            (json!({ "not": { "$ref": "#" } }), "itself"),
            (chain("#/$defs/a0", &doubled, 21), "ways"),
            (chain("#/$defs/a0", &long, 200), "more than 64"),
            (json!({ "$ref": "https://example.com/s.json" }), "no part"),
            (json!({ "$ref": "file:///etc/passwd" }), "no part"),
            (json!({ "$ref": "#/$defs/none" }), "no part"),
            (json!({ "$ref": "other.json#/a" }), "no part"),
            (json!({ "$dynamicRef": "#x" }), "$dynamicRef"),
            (json!({ "properties": { "a": { "$id": "https://example.com/" } } }), "$id"),
            (
                json!({ "properties": (0..101).map(|n| (n.to_string(), json!({ "pattern": "a" }))).collect::<Map<_, _>>() }),
                "patterns",
            ),
        ] {
            assert!(refused(&schema).contains(word), "{schema}: {}", refused(&schema));
        }
        for good in [
            json!(true),
            json!({}),
            json!({ "$id": "https://example.com/", "$schema": "https://json-schema.org/draft/2020-12/schema" }),
            json!({ "properties": { "child": { "$ref": "#" } } }),
            json!({ "items": { "$ref": "#" }, "anyOf": [{ "properties": { "a": { "$ref": "#" } } }] }),
            json!({ "$ref": "#/$defs/a%20b~1c", "$defs": { "a b/c": { "type": "object" } } }),
        ] {
            assert_eq!(refused(&good), "", "{good}");
        }
    }

    /// Args of `depth` levels, each the member `name` of the one above.
    fn nested(name: &str, depth: usize) -> Value {
        (0..depth).fold(json!(1), |inner, _| json!({ name: inner }))
    }

    #[test]
    fn what_takes_too_long_is_known_before() {
        const BUDGET: u64 = 1_000_000;
        let tree = json!({
            "anyOf": [
                { "properties": { "left": { "$ref": "#" }, "op": { "const": "add" } } },
                { "properties": { "left": { "$ref": "#" }, "op": { "const": "mul" } } },
            ],
        });
        let list = json!({ "properties": { "next": { "$ref": "#" }, "n": { "type": "integer" } } });
        let pattern = json!({ "items": { "pattern": "^(a+)+$" } });
        let unevaluated = json!({ "allOf": [{ "enum": [1, 2, 3] }], "unevaluatedProperties": false });
        let unique = json!({ "uniqueItems": true });
        let fraction = json!({ "items": { "multipleOf": 0.01 } });
        let many = |len: usize| Value::Object((0..len).map(|n| (n.to_string(), json!(n))).collect());
        for (schema, value, fits) in [
            (&tree, nested("left", 3), true),
            (&tree, nested("left", 40), false),
            (&list, nested("next", 60), true),
            (&pattern, json!(["a".repeat(10_000)]), true),
            (&pattern, json!(vec!["a".repeat(10_000); 100]), false),
            (&unevaluated, many(100), true),
            (&unevaluated, many(500_000), false),
            (&unique, json!((0..200_000).collect::<Vec<_>>()), true),
            (&unique, json!(vec![json!([1]); 500]), true),
            (&unique, json!(vec![json!([1]); 5_000]), false),
            (&fraction, json!(vec![9e307; 1_000]), true),
            (&fraction, json!(vec![9e307; 100_000]), false),
        ] {
            assert_eq!(Costs::of(schema).unwrap().check(&value, BUDGET).is_ok(), fits, "{schema}");
        }
        let plain = Costs::of(&json!({ "type": "array", "items": { "type": "integer" } })).unwrap();
        assert!(plain.check(&json!(vec![1; 200_000]), BUDGET).is_ok(), "long args by a plain schema");
    }

    #[test]
    fn what_is_remembered_takes_little_memory() {
        let list = json!({ "items": { "$ref": "#/$defs/a" }, "$defs": { "a": { "anyOf": [{ "type": "integer" }, true] } } });
        let costs = Costs::of(&list).unwrap();
        let reckon = |value: &Value, left| {
            let mut reckoning = Reckoning { costs: &costs, known: HashMap::new(), left };
            let cost = reckoning.at(0, value, 0);
            (cost, u64::MAX - reckoning.left, reckoning.known.len())
        };
        let (cost, steps, known) = reckon(&json!(vec![0; 300_000]), u64::MAX);
        assert!(steps <= cost.unwrap(), "{steps}");
        assert_eq!(known, 1, "the list alone");
        assert_eq!(reckon(&json!(vec![json!([]); 1000]), u64::MAX).2, 1);
        let (cost, _, known) = reckon(&json!(vec![[0]; 300_000]), u64::MAX);
        assert_eq!((cost, known), (Err(TooMuch), KNOWN_MAX));
    }
}
