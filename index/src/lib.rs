//! Everything about vectors: metrics, exact search, indexes, named sets and their graphs, k-means, duplicates.
//! Parses no SQL.

mod assign;
mod build;
mod centroids;
mod check;
mod clip_loss;
mod duplicates;
mod error;
mod exact;
mod gpu;
mod graph;
mod indexes;
mod kernel;
mod kind;
mod kmeans;
mod metric;
mod near;
mod search;
mod set;
mod stop;
mod top;

pub use centroids::find_centroids;
pub use check::{Check, Measured, check_index, ladder, recommend};
pub use clip_loss::{ClipLoss, neg_clip_loss};
pub use duplicates::{Duplicate, Keep, duplicates};
pub use error::{Error, Result};
pub use exact::{Wanted, exact, rerank, without_vector};
pub use gpu::kernel_source;
pub use graph::{Graph, GraphOptions, build_graph, graph_of};
pub use indexes::{Effort, IndexInfo, NewIndex, create_index, drop_index, indexes_of, list_indexes, set_defaults, update_index};
pub use kind::{KINDS, Kind};
pub use kmeans::{Clusters, KMeans, Start, kmeans};
pub use metric::{Distance, Metric, as_fixed, check_queries, measure};
pub use near::{NearDuplicate, NearEvalImage, near_duplicates, near_eval_images};
pub use search::Searcher;
pub use set::VectorSet;
pub use stop::Stop;
pub use top::Neighbour;
