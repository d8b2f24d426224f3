//! tarn's SQL functions, one file per kind; each is defined once with its documentation.

mod embed;
mod function;
pub(crate) mod internal;
mod language;
mod reference;
mod sample;
mod sets;
mod synset;
mod text;
mod top_fraction;
mod uid;
mod vector;

use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use datafusion::prelude::SessionContext;

use crate::resources::Resources;

pub use embed::Embed;
pub use reference::{FunctionInfo, function_list, reference};
pub(crate) use sets::Sets;
pub(crate) use top_fraction::TwoPasses;
pub(crate) use uid::uid_call;

/// All of tarn's functions; those of a model where there is one.
fn all(resources: &Arc<Resources>, sets: &Arc<Sets>, embed: Option<&Arc<dyn Embed>>) -> (Vec<ScalarUDF>, Vec<AggregateUDF>) {
    let mut scalars = vector::functions(sets);
    scalars.extend(embed.into_iter().flat_map(embed::functions));
    scalars.extend(language::functions(resources));
    scalars.extend(text::functions());
    scalars.push(synset::function(resources));
    scalars.push(sample::function());
    scalars.extend(uid::functions());
    (scalars, vec![top_fraction::function()])
}

pub(crate) fn register(context: &SessionContext, resources: &Arc<Resources>, sets: &Arc<Sets>, embed: Option<&Arc<dyn Embed>>) {
    let (scalars, aggregates) = all(resources, sets, embed);
    internal::functions().into_iter().for_each(|function| context.register_udf(function));
    scalars.into_iter().for_each(|function| context.register_udf(function));
    aggregates.into_iter().for_each(|function| context.register_udaf(function));
}

/// An error of a library crate as DataFusion carries it.
fn external(e: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(e))
}
