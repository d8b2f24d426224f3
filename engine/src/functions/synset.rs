use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::datatypes::DataType;
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{ScalarUDF, Signature, Volatility};

use super::external;
use super::function::{About, Arguments, Function, texts};
use super::text::is_space;
use crate::resources::Resources;

/// `mentions_synset(text, set)`.
pub(super) fn function(resources: &Arc<Resources>) -> ScalarUDF {
    let about = About {
        syntax: "mentions_synset(text, set)",
        description: "Whether some word of a text has as its first WordNet 3.0 synset one of a list: DataComp's text-based test. Words are those of Python's `text.split()`, punctuation kept; the first synset is NLTK's `wordnet.synsets(word)[0]`, and its offset counts whatever its part of speech. Needs WordNet and the list in the resources folder (`tarn resources`).",
        arguments: &[
            ("text", "A text."),
            ("set", "The list's name, a constant: 'imagenet21k_wordnet_ids' is the file imagenet21k_wordnet_ids.txt."),
        ],
        example: "SELECT count(*) FROM pool WHERE mentions_synset(text, 'imagenet21k_wordnet_ids')",
    };
    let resources = resources.clone();
    Function::udf("mentions_synset", about, Signature::string(2, Volatility::Immutable), DataType::Boolean, move |args| {
        Ok(Arc::new(mentions(&resources, args)?) as ArrayRef)
    })
}

fn mentions(resources: &Resources, args: &Arguments) -> Result<BooleanArray> {
    let Some(name) = constant(&args.arrays[1])? else { return Ok(BooleanArray::new_null(args.rows)) };
    let (wordnet, set) = (resources.wordnet().map_err(external)?, resources.synsets(&name).map_err(external)?);
    let texts = texts(&args.arrays[0])?;
    // Captions repeat their words.
    let mut known: HashMap<&str, bool> = HashMap::new();
    let mut is_in = |word| *known.entry(word).or_insert_with(|| wordnet.first_synset(word).is_some_and(|synset| set.contains(&synset)));
    let mut answers = Vec::with_capacity(args.rows);
    for i in 0..texts.len() {
        answers.push(texts.is_valid(i).then(|| texts.value(i).split(is_space).filter(|word| !word.is_empty()).any(&mut is_in)));
    }
    Ok(answers.into())
}

/// The one value of an argument that must be a constant.
pub(super) fn constant(array: &ArrayRef) -> Result<Option<String>> {
    let names = texts(array)?;
    match names.len() {
        1 => Ok(names.is_valid(0).then(|| names.value(0).to_string())),
        _ => exec_err!("the name of a set must be a constant"),
    }
}
