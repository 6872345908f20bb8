//! A table of the file with its places: typed look-ups that report what is wrong and where, and remember which keys were asked
//! for, so that the rest is unknown.

use crate::error::{Sink, did_you_mean};
use crate::units;
use kiln_model::Millis;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

pub(crate) type Shared<'s, 't> = &'s RefCell<Sink<'t>>;

/// A value with its place.
#[derive(Clone)]
pub(crate) struct Value<'d> {
    pub(crate) span: Range<usize>,
    pub(crate) value: &'d DeValue<'d>,
}

/// A table whose keys are taken one by one.
#[derive(Clone)]
pub(crate) struct Table<'d> {
    /// How the user knows it: `[services.web]`.
    pub(crate) name: String,
    pub(crate) span: Range<usize>,
    entries: BTreeMap<String, (Range<usize>, Value<'d>)>,
    known: Vec<&'static str>,
}

impl<'d> Table<'d> {
    pub(crate) fn new(name: impl Into<String>, span: Range<usize>, table: &'d DeTable<'d>) -> Self {
        let entry = |(key, value): (&'d toml::Spanned<_>, &'d toml::Spanned<DeValue<'d>>)| {
            let key: &toml::Spanned<std::borrow::Cow<'_, str>> = key;
            let value = Value { span: value.span(), value: value.get_ref() };
            (key.get_ref().to_string(), (key.span(), value))
        };
        Self { name: name.into(), span, entries: table.iter().map(entry).collect(), known: vec![] }
    }

    /// The same table, said to be at `span`: the place of its key.
    pub(crate) fn at(self, span: Range<usize>) -> Self {
        Self { span, ..self }
    }

    /// All keys with their places, for tables of named things.
    pub(crate) fn keys(&self) -> Vec<(String, Range<usize>)> {
        self.entries.iter().map(|(key, (span, _))| (key.clone(), span.clone())).collect()
    }

    pub(crate) fn take(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        self.entries.remove(key).map(|(_, value)| value)
    }

    /// Where the value of a key is.
    pub(crate) fn place(&self, key: &str) -> Option<Range<usize>> {
        self.entries.get(key).map(|(_, value)| value.span.clone())
    }

    /// Whether the key is there and was not taken yet.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether a key is there that is probably meant to be this one: it will be reported as unknown.
    pub(crate) fn has_misspelt(&self, key: &str) -> bool {
        self.entries.keys().any(|other| other != key && did_you_mean(other, &[key]).is_some())
    }

    fn is_root(&self) -> bool {
        matches!(&*self.name, "" | "[]")
    }

    /// Whether the key is absent or an empty array.
    pub(crate) fn is_empty_array(&self, key: &str) -> bool {
        let value = self.entries.get(key).map(|(_, value)| value.value.as_array());
        value.is_none_or(|array| array.is_some_and(|items| items.is_empty()))
    }

    /// Drops keys that an error already covers.
    pub(crate) fn forget(&mut self, keys: impl IntoIterator<Item = &'static str>) {
        for key in keys {
            self.known.push(key);
            self.entries.remove(key);
        }
    }

    pub(crate) fn take_named(&mut self, key: &str) -> Option<Value<'d>> {
        self.entries.remove(key).map(|(_, value)| value)
    }

    pub(crate) fn table(&mut self, key: &'static str, sink: Shared<'_, '_>) -> Option<Table<'d>> {
        let value = self.take(key)?;
        let name = self.child(key);
        value.as_table(name, sink)
    }

    pub(crate) fn child(&self, key: &str) -> String {
        match self.name.trim_matches(['[', ']']) {
            "" => format!("[{key}]"),
            own => format!("[{own}.{key}]"),
        }
    }

    pub(crate) fn string(
        &mut self,
        key: &'static str,
        sink: Shared<'_, '_>,
    ) -> Option<(String, Range<usize>)> {
        let value = self.take(key)?;
        let text = value.as_str(key, sink)?;
        Some((text.to_owned(), value.span))
    }

    pub(crate) fn strings(
        &mut self,
        key: &'static str,
        sink: Shared<'_, '_>,
    ) -> Option<Vec<(String, Range<usize>)>> {
        let value = self.take(key)?;
        let items = value.as_array(key, "an array of strings", sink)?;
        items.into_iter().map(|item| Some((item.as_str(key, sink)?.to_owned(), item.span))).collect()
    }

    pub(crate) fn integer(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
        sink: Shared<'_, '_>,
    ) -> Option<u64> {
        let value = self.take(key)?;
        let number = match value.value {
            DeValue::Integer(n) => i128::from_str_radix(n.as_str(), n.radix()).ok(),
            _ => None,
        };
        let number = number.and_then(|n| u64::try_from(n).ok()).filter(|n| range.contains(n));
        if number.is_none() {
            value.wrong(key, &format!("a whole number from {} to {}", range.start(), range.end()), sink);
        }
        number
    }

    pub(crate) fn flag(&mut self, key: &'static str, sink: Shared<'_, '_>) -> Option<bool> {
        let value = self.take(key)?;
        let flag = value.value.as_bool();
        if flag.is_none() {
            value.wrong(key, "true or false", sink);
        }
        flag
    }

    /// A whole or fractional number.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<f64>,
        sink: Shared<'_, '_>,
    ) -> Option<f64> {
        let value = self.take(key)?;
        let number = match value.value {
            DeValue::Integer(n) => n.as_str().parse().ok(),
            DeValue::Float(n) => n.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|n: &f64| range.contains(n));
        if number.is_none() {
            value.wrong(key, &format!("a number from {} to {}", range.start(), range.end()), sink);
        }
        number
    }

    pub(crate) fn duration(&mut self, key: &'static str, sink: Shared<'_, '_>) -> Option<Millis> {
        self.duration_from(key, Millis(0), sink)
    }

    /// A duration that is at least `least`.
    pub(crate) fn duration_from(
        &mut self,
        key: &'static str,
        least: Millis,
        sink: Shared<'_, '_>,
    ) -> Option<Millis> {
        let value = self.take(key)?;
        match value.value.as_str().and_then(units::duration) {
            Some(span) if span >= least => Some(span),
            Some(_) => {
                value.wrong(key, &format!("at least {least}"), sink);
                None
            }
            None => {
                value.wrong(key, units::DURATION, sink);
                None
            }
        }
    }

    /// A size in bytes and its place.
    pub(crate) fn size(&mut self, key: &'static str, sink: Shared<'_, '_>) -> Option<(u64, Range<usize>)> {
        let value = self.take(key)?;
        let parsed = match value.value {
            DeValue::Integer(n) => units::size(n.as_str()),
            other => other.as_str().and_then(units::size),
        };
        if parsed.is_none() {
            value.wrong(key, units::SIZE, sink);
        }
        Some((parsed?, value.span))
    }

    /// Refuses a key that a later kiln will have.
    pub(crate) fn reserved(&mut self, key: &'static str, hint: &str, sink: Shared<'_, '_>) {
        let Some((span, _)) = self.entries.remove(key) else { return };
        let place = if self.is_root() { String::new() } else { format!(" in `{}`", self.name) };
        let message = format!("`{key}`{place} is not available yet");
        sink.borrow_mut().push(span, message, Some(hint.to_owned()));
    }

    /// Every key that was not asked for is unknown.
    pub(crate) fn finish(self, sink: Shared<'_, '_>) {
        for (key, (span, _)) in &self.entries {
            let hint = did_you_mean(key, &self.known)
                .unwrap_or_else(|| format!("known keys are {}", self.known.join(", ")));
            let place = if self.is_root() { String::new() } else { format!(" in `{}`", self.name) };
            let message = format!("unknown key `{key}`{place}");
            sink.borrow_mut().push(span.clone(), message, Some(hint));
        }
    }

    pub(crate) fn missing(&self, key: &str, example: &str, sink: Shared<'_, '_>) {
        let message = format!("`{}` has no `{key}`", self.name);
        sink.borrow_mut().push(self.span.clone(), message, Some(format!("add `{key} = {example}`")));
    }
}

impl<'d> Value<'d> {
    pub(crate) fn wrong(&self, key: &str, expected: &str, sink: Shared<'_, '_>) {
        let message = format!("`{key}` must be {expected}");
        sink.borrow_mut().push(self.span.clone(), message, None);
    }

    pub(crate) fn as_str(&self, key: &str, sink: Shared<'_, '_>) -> Option<&'d str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.wrong(key, &format!("a string, not {}", article(self.value.type_str())), sink);
        }
        text
    }

    pub(crate) fn as_array(&self, key: &str, expected: &str, sink: Shared<'_, '_>) -> Option<Vec<Value<'d>>> {
        let Some(items) = self.value.as_array() else {
            self.wrong(key, expected, sink);
            return None;
        };
        Some(items.iter().map(|item| Value { span: item.span(), value: item.get_ref() }).collect())
    }

    pub(crate) fn as_table(&self, name: String, sink: Shared<'_, '_>) -> Option<Table<'d>> {
        let Some(table) = self.value.as_table() else {
            self.wrong(name.trim_matches(['[', ']']), "a table", sink);
            return None;
        };
        Some(Table::new(name, self.span.clone(), table))
    }
}

fn article(word: &str) -> String {
    let vowel = word.starts_with(['a', 'e', 'i', 'o']);
    format!("{} {word}", if vowel { "an" } else { "a" })
}
