//! tarn's SQL functions, one file per kind; each is defined once with its documentation.

mod aggregate;
mod sample;
mod text;
mod uid;
mod vector;

use datafusion::common::DataFusionError;
use datafusion::logical_expr::{AggregateUDF, DocSection, ScalarUDF};
use datafusion::prelude::SessionContext;

pub(crate) use uid::uid_call;

const SECTION: DocSection = DocSection { include: true, label: "Image-text pools", description: None };

pub(crate) fn register(context: &SessionContext) {
    context.register_udf(ScalarUDF::from(vector::CosineSimilarity::default()));
    context.register_udf(ScalarUDF::from(text::WordCount::default()));
    context.register_udf(ScalarUDF::from(sample::SampleHash::default()));
    context.register_udf(ScalarUDF::from(uid::UidOf::default()));
    context.register_udf(ScalarUDF::from(uid::UidTextOf::default()));
    context.register_udaf(AggregateUDF::from(aggregate::TopFraction::default()));
}

/// An error of a library crate as DataFusion carries it.
fn external(e: impl std::error::Error + Send + Sync + 'static) -> DataFusionError {
    DataFusionError::External(Box::new(e))
}
