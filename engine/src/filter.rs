//! Saved filters: SQL files with a header that declares typed parameters, and the ones that ship inside.

use std::ops::RangeInclusive;
use std::path::Path;

use arrow::datatypes::DataType;
use datafusion::scalar::ScalarValue;

use crate::{Error, Result};

/// The filters inside the program, under DataComp's own names.
const SHIPPED: [(&str, &str); 14] = [
    ("basic_filter", include_str!("../filters/basic_filter.sql")),
    ("clip_score", include_str!("../filters/clip_score.sql")),
    ("decontaminated", include_str!("../filters/decontaminated.sql")),
    ("dedup_exact", include_str!("../filters/dedup_exact.sql")),
    ("dedup_near", include_str!("../filters/dedup_near.sql")),
    ("image_based", include_str!("../filters/image_based.sql")),
    ("image_based_intersect_clip_score", include_str!("../filters/image_based_intersect_clip_score.sql")),
    ("laion2b", include_str!("../filters/laion2b.sql")),
    ("neg_clip_loss", include_str!("../filters/neg_clip_loss.sql")),
    ("no_filter", include_str!("../filters/no_filter.sql")),
    ("normsim", include_str!("../filters/normsim.sql")),
    ("random_subset", include_str!("../filters/random_subset.sql")),
    ("semantic_dedup", include_str!("../filters/semantic_dedup.sql")),
    ("text_based", include_str!("../filters/text_based.sql")),
];

/// A query that selects uids, with what its header says.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// A shipped filter's name, a file's stem, or `sql`.
    name: String,
    pub about: String,
    pub source: String,
    pub parameters: Vec<Parameter>,
    /// The whole text, header included.
    sql: String,
    /// Whether parameters must be declared: true for all but SQL given on the spot.
    declared: bool,
}

/// A line `-- param NAME: TYPE [in ('A', 'B')] [= DEFAULT] [-- ABOUT]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub data_type: ParameterType,
    /// The values allowed, for text; empty means any.
    pub choices: Vec<String>,
    /// Between which a number must lie, both included.
    pub range: Option<RangeInclusive<f64>>,
    pub default: Option<ScalarValue>,
    pub about: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    Text,
    Double,
    Int,
    Boolean,
}

/// A filter with a value for each of its parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    filter: Filter,
    params: Vec<(String, ScalarValue)>,
}

impl Bound {
    pub fn name(&self) -> &str {
        &self.filter.name
    }

    pub fn sql(&self) -> &str {
        &self.filter.sql
    }

    /// Whether the filter declares its parameters; SQL given on the spot does not.
    pub(crate) fn is_declared(&self) -> bool {
        self.filter.declared
    }

    pub fn params(&self) -> &[(String, ScalarValue)] {
        &self.params
    }
}

impl ParameterType {
    fn named(name: &str) -> Option<ParameterType> {
        Some(match name {
            "text" => ParameterType::Text,
            "double" => ParameterType::Double,
            "int" => ParameterType::Int,
            "boolean" => ParameterType::Boolean,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            ParameterType::Text => "text",
            ParameterType::Double => "double",
            ParameterType::Int => "int",
            ParameterType::Boolean => "boolean",
        }
    }

    /// A value of this type from what was typed; `NULL` in any case is one of every type.
    fn parse(self, text: &str) -> Option<ScalarValue> {
        let null = text.eq_ignore_ascii_case("null");
        Some(match self {
            ParameterType::Text => ScalarValue::Utf8((!null).then(|| text.to_string())),
            ParameterType::Double if null => ScalarValue::Float64(None),
            ParameterType::Double => ScalarValue::Float64(Some(text.parse().ok().filter(|x: &f64| x.is_finite())?)),
            ParameterType::Int if null => ScalarValue::Int64(None),
            ParameterType::Int => ScalarValue::Int64(Some(text.parse().ok()?)),
            ParameterType::Boolean if null => ScalarValue::Boolean(None),
            ParameterType::Boolean => ScalarValue::Boolean(Some(text.to_lowercase().parse().ok()?)),
        })
    }
}

impl Filter {
    /// All shipped filters, in the order of their names.
    pub fn shipped() -> Vec<Filter> {
        let parse = |(name, sql): &(&str, &str)| Filter::parse(name, sql).expect("shipped filters have sound headers");
        let mut filters: Vec<Filter> = SHIPPED.iter().map(parse).collect();
        filters.sort_by(|a, b| a.name.cmp(&b.name));
        filters
    }

    /// The shipped filter of this name.
    pub fn named(name: &str) -> Result<Filter> {
        match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            Some((name, sql)) => Filter::parse(name, sql),
            None => {
                let near = storage::closest(name, SHIPPED.iter().map(|(name, _)| *name)).map(str::to_string);
                Err(Error::UnknownFilter { name: name.to_string(), near })
            }
        }
    }

    /// What a person may give as a filter: a shipped filter's name, a file that ends in `.sql`, or SQL.
    pub fn resolve(text: &str) -> Result<Filter> {
        let path = Path::new(text);
        if path.extension().is_some_and(|e| e == "sql") {
            let sql = std::fs::read_to_string(path).map_err(Error::io(path))?;
            let sql = sql.trim_start_matches('\u{feff}'); // some editors begin files so
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            return Filter::parse(&name, sql);
        }
        let first = text.trim_start().split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("");
        if ["select", "with", "values"].iter().any(|word| first.eq_ignore_ascii_case(word)) || text.trim_start().starts_with(['(', '-']) {
            return Ok(Filter { declared: false, ..Filter::parse("sql", text)? });
        }
        Filter::named(text)
    }

    /// Reads a filter's header; `name` stands for it in messages.
    pub fn parse(name: &str, sql: &str) -> Result<Filter> {
        let mut filter = Filter {
            name: name.to_string(),
            about: String::new(),
            source: String::new(),
            parameters: Vec::new(),
            sql: sql.to_string(),
            declared: true,
        };
        for (i, line) in sql.lines().enumerate() {
            let Some(comment) = line.trim().strip_prefix("--") else { if line.trim().is_empty() { continue } else { break } };
            let header = |reason: String| Error::Header { filter: name.to_string(), line: i + 1, reason };
            match comment.trim().split_once(char::is_whitespace) {
                Some(("about:", rest)) => filter.about = rest.trim().to_string(),
                Some(("source:", rest)) => filter.source = rest.trim().to_string(),
                Some(("param", rest)) => {
                    let parameter = Parameter::parse(rest).map_err(header)?;
                    if filter.parameters.iter().any(|p| p.name == parameter.name) {
                        return Err(header(format!("parameter '{}' is declared twice", parameter.name)));
                    }
                    filter.parameters.push(parameter);
                }
                _ => {}
            }
        }
        Ok(filter)
    }

    /// Gives each parameter its value, from `given` or its default.
    pub fn bind(self, given: &[(String, String)]) -> Result<Bound> {
        let mut params = Vec::new();
        for (i, (name, value)) in given.iter().enumerate() {
            if given[..i].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::ParameterTwice { filter: self.name, name: name.clone() });
            }
            match self.parameters.iter().find(|p| p.name == *name) {
                Some(parameter) => params.push((name.clone(), self.value(parameter, value)?)),
                None if !self.declared => params.push((name.clone(), guess(value))),
                None => return Err(self.unknown_parameter(name)),
            }
        }
        for parameter in &self.parameters {
            if given.iter().any(|(name, _)| *name == parameter.name) {
                continue;
            }
            match &parameter.default {
                Some(value) => params.push((parameter.name.clone(), value.clone())),
                None => return Err(self.missing_parameter(&parameter.name)),
            }
        }
        Ok(Bound { filter: self, params })
    }

    pub(crate) fn unknown_parameter(&self, name: &str) -> Error {
        let known = self.parameters.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        Error::UnknownParameter { filter: self.name.clone(), name: name.to_string(), known }
    }

    pub(crate) fn undeclared(&self, name: &str) -> Error {
        Error::Undeclared { filter: self.name.clone(), name: name.to_string() }
    }

    pub(crate) fn missing_parameter(&self, name: &str) -> Error {
        Error::ParameterMissing { filter: self.name.clone(), name: name.to_string() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its text, header included.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    pub(crate) fn value(&self, parameter: &Parameter, text: &str) -> Result<ScalarValue> {
        let wrong = |expected: String| Error::ParameterValue {
            filter: self.name.clone(),
            name: parameter.name.clone(),
            expected,
            got: text.to_string(),
        };
        let value = parameter.data_type.parse(text).ok_or_else(|| wrong(format!("of type {}", parameter.data_type.name())))?;
        if !parameter.choices.is_empty() && !parameter.choices.iter().any(|choice| choice == text) {
            return Err(wrong(format!("one of {}", parameter.choices.join(", "))));
        }
        let number = value.cast_to(&DataType::Float64).ok().and_then(|value| match value {
            ScalarValue::Float64(number) => number,
            _ => None,
        });
        if let (Some(range), Some(number)) = (&parameter.range, number)
            && !range.contains(&number)
        {
            return Err(wrong(format!("from {} to {}", range.start(), range.end())));
        }
        Ok(value)
    }
}

impl Parameter {
    fn parse(text: &str) -> Result<Parameter, String> {
        let (declaration, about) = split_unquoted(text, "--").unwrap_or((text, ""));
        let (name, rest) = declaration.split_once(':').ok_or("a parameter needs a type")?;
        let name = name.trim();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("'{name}' is not a parameter's name"));
        }
        let (rest, default) = match rest.split_once('=') {
            Some((rest, default)) => (rest, Some(default.trim())),
            None => (rest, None),
        };
        let (type_name, choices) = match rest.split_once(" in ") {
            Some((type_name, choices)) => (type_name.trim(), choices.trim()),
            None => (rest.trim(), ""),
        };
        let data_type = ParameterType::named(type_name)
            .ok_or_else(|| format!("unknown type '{type_name}', the types are text, double, int, boolean"))?;
        let inside = choices.trim_start_matches('(').trim_end_matches(')');
        let (mut choices, mut left): (Vec<String>, &str) = (Vec::new(), inside);
        while !left.trim().is_empty() {
            let (choice, rest) = split_unquoted(left, ",").unwrap_or((left, ""));
            choices.push(unquote(choice));
            left = rest;
        }
        // `in (0..1)`: both ends may be had.
        let range = match choices.first().and_then(|choice| choice.split_once("..")) {
            Some((least, most)) if data_type != ParameterType::Text => {
                let end = |text: &str| text.trim().parse::<f64>().map_err(|_| format!("'{text}' of '{name}' is no number"));
                let range = end(least)?..=end(most)?;
                choices.clear();
                Some(range)
            }
            _ => None,
        };
        let default = match default {
            Some(text) => {
                let value = data_type.parse(&unquote(text));
                let value = value.ok_or_else(|| format!("default {text} of '{name}' is not of type {type_name}"))?;
                if !choices.is_empty() && !value.is_null() && !choices.contains(&unquote(text)) {
                    return Err(format!("default {text} of '{name}' is none of {}", choices.join(", ")));
                }
                Some(value)
            }
            None => None,
        };
        Ok(Parameter { name: name.to_string(), data_type, choices, range, default, about: about.trim().to_string() })
    }
}

/// What stands before and behind the first `separator` outside quotes.
fn split_unquoted<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    let mut quoted = false;
    for (i, c) in text.char_indices() {
        if c == '\'' {
            quoted = !quoted;
        } else if !quoted && text[i..].starts_with(separator) {
            return Some((&text[..i], &text[i + separator.len()..]));
        }
    }
    None
}

/// A text without the quotes around it, doubled ones within made single.
fn unquote(text: &str) -> String {
    let text = text.trim();
    match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(inside) => inside.replace("''", "'"),
        None => text.to_string(),
    }
}

/// A value for a parameter that nothing declares: a number where it reads as one, else text.
pub fn guess(text: &str) -> ScalarValue {
    // A list of numbers is a vector.
    if let Ok(values) = serde_json::from_str::<Vec<f32>>(text) {
        let values: Vec<ScalarValue> = values.into_iter().map(ScalarValue::from).collect();
        return ScalarValue::List(ScalarValue::new_list_nullable(&values, &arrow::datatypes::DataType::Float32));
    }
    // A number that is written otherwise than numbers are (a uid, a leading zero) is a text.
    let int = text.parse::<i64>().ok().filter(|n| n.to_string() == text);
    let plain = text.trim_start_matches('-');
    let is_double = text.len() < 25 && plain.contains(['.', 'e', 'E']) && (!plain.starts_with('0') || plain.starts_with("0."));
    let double = || ParameterType::Double.parse(text).filter(|value| is_double && !value.is_null());
    int.map(|n| ScalarValue::Int64(Some(n))).or_else(double).unwrap_or_else(|| ScalarValue::Utf8(Some(text.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn header_gives_types_defaults_and_choices() {
        let filter = Filter::named("clip_score").unwrap();
        let [arch, fraction, threshold] = &filter.parameters[..] else { panic!() };
        assert_eq!(arch.choices, ["l14", "b32"]);
        assert_eq!(fraction.default, Some(ScalarValue::Float64(Some(0.3))));
        assert_eq!(threshold.default, Some(ScalarValue::Float64(None)));
        assert_eq!(fraction.about, "of the pool, by score");
        let bound = filter.bind(&given(&[("fraction", "0.1"), ("arch", "b32")])).unwrap();
        assert_eq!(bound.params().len(), 3);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let bind = |pairs: &[(&str, &str)]| Filter::named("clip_score").unwrap().bind(&given(pairs)).unwrap_err();
        assert_eq!(
            bind(&[("fraction", "lots")]).to_string(),
            "parameter 'fraction' of filter 'clip_score' must be of type double, got 'lots'"
        );
        assert_eq!(bind(&[("arch", "h14")]).to_string(), "parameter 'arch' of filter 'clip_score' must be one of l14, b32, got 'h14'");
        let unknown = bind(&[("fracton", "0.1")]);
        assert_eq!(unknown.hint().unwrap(), "did you mean 'fraction'?");
        let missing = Filter::parse("mine", "-- param k: int\nSELECT uid FROM pool LIMIT $k").unwrap().bind(&[]);
        assert_eq!(missing.unwrap_err().to_string(), "filter 'mine' needs a value for its parameter 'k'");
        let header = Filter::parse("mine", "-- about: x\n-- param k: number = 3\nSELECT 1").unwrap_err();
        assert_eq!(header.to_string(), "mine, line 2: unknown type 'number', the types are text, double, int, boolean");
        assert_eq!(Filter::named("clip_scor").unwrap_err().hint().unwrap(), "did you mean 'clip_score'?");
    }

    #[test]
    fn sql_on_the_spot_takes_any_parameter() {
        let filter = Filter::resolve("select uid from pool where word_count(text) > $n").unwrap();
        let bound = filter.bind(&given(&[("n", "3")])).unwrap();
        assert_eq!(bound.params(), [("n".to_string(), ScalarValue::Int64(Some(3)))]);
    }
}
