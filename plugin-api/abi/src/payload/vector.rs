//! `vector.search/1`: collections of vectors that stay in memory, and the nearest of them to a query.
//!
//! Vectors may come as JSON or, in bulk, as the tensor [`VECTORS`], `[count, dimension]`: never both. Collections belong
//! to the tenant who made them.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vector.search";

/// Name of the tensor with vectors: those to keep, the queries of a search, or what [`Read`] gives.
pub const VECTORS: &str = "vectors";

/// Name of the tensor that says in which rows the vectors of [`Read`] lie.
pub const ROWS: &str = "rows";

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Find the nearest vectors: [`Search`].
    #[default]
    Search,
    /// Make a collection: [`Create`].
    Create,
    /// Keep vectors under ids, in the place of those that are there: [`Upsert`].
    Upsert,
    /// Let vectors go: [`Delete`].
    Delete,
    /// Let a whole collection go: [`Remove`].
    Drop,
    /// List the caller's collections: [`List`].
    List,
    /// Read vectors as they lie: [`Read`].
    Read,
}

/// How a component of a vector is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes: rounded to 11 significant bits, up to 65504.
    F16,
    /// 1 byte: whole numbers from -128 to 127, as the caller scaled them.
    I8,
}

/// What "near" means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The cosine of the angle, from 1 (the same direction) to -1.
    #[default]
    Cosine,
    /// The dot product: greater is nearer.
    Dot,
    /// The Euclidean distance: smaller is nearer.
    L2,
}

/// The nearest vectors to each query. `operation` may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Search {
    /// In which collection.
    pub collection: String,
    /// The queries, unless they come as a tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vectors: Vec<Vec<f32>>,
    /// How many for each query.
    #[serde(default = "ten")]
    pub k: u32,
    /// Only among these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Whether each hit carries its metadata.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub include_metadata: bool,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

fn ten() -> u32 {
    10
}

/// Which vectors count. What is said must all hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Only these ids; those that are not there are passed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<String>>,
    /// Only vectors whose metadata has each of these members with an equal value.
    #[serde(skip_serializing_if = "Extra::is_empty")]
    pub metadata: Extra,
}

/// Makes a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Create {
    /// Its name: 1 to 64 letters, digits, `.`, `_` or `-`.
    pub collection: String,
    /// Components of each vector.
    pub dimension: u32,
    /// How they are kept.
    #[serde(default)]
    pub dtype: Component,
    /// What "near" means.
    #[serde(default)]
    pub metric: Metric,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Keeps vectors under ids, all or none of them. One that is there is replaced, its metadata too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Upsert {
    /// In which collection.
    pub collection: String,
    /// An id for each vector, each once: 1 to 512 bytes.
    pub ids: Vec<String>,
    /// The vectors, unless they come as a tensor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vectors: Vec<Vec<f32>>,
    /// An object or null for each vector; absent: none has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<Option<Extra>>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Lets vectors go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Delete {
    /// Of which collection.
    pub collection: String,
    /// Which; those that are not there are passed over.
    pub ids: Vec<String>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Lets a collection go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Remove {
    /// Which.
    pub collection: String,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Lists the caller's collections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct List {
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Reads a collection, all of it or what changed: for whoever keeps a copy where a search is faster.
///
/// A row may be read that has changed again, so a copy is whole only after a read that gave everything at once. It is that
/// of the `version` of its first part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Read {
    /// Which.
    pub collection: String,
    /// The `version` of the copy: only rows that changed after it are given. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only from this row on: `next` of the part before.
    #[serde(default)]
    pub first: u32,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Parameters: `operation`, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Params {
    /// Find the nearest vectors.
    Search(Search),
    /// Make a collection.
    Create(Create),
    /// Keep vectors.
    Upsert(Upsert),
    /// Let vectors go.
    Delete(Delete),
    /// Let a collection go.
    Drop(Remove),
    /// List collections.
    List(List),
    /// Read vectors as they lie.
    Read(Read),
}

/// The result, in one chunk; which members are there depends on the operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Chunk {
    /// `search`: for each query the nearest, nearest first. Of two equally near the one with the smaller id, byte by
    /// byte, comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<Vec<Vec<Hit>>>,
    /// `create`, `list`: the collections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collections: Option<Vec<Collection>>,
    /// `upsert`: vectors kept. `delete`: vectors that were there and are gone. `drop`: vectors that the collection had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// `read`: some of the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Some rows of a collection. Beside it are the tensors `rows`, UINT32, `[given]`, and `vectors`, `[given, dimension]` of the
/// collection's own type, unless none is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// The collection now; it has the rows from 0 to `count`, and a copy has no others.
    pub collection: Collection,
    /// What it is now, in one word.
    pub version: String,
    /// Whether nothing of an earlier copy holds any more: `since` was another collection's, or absent.
    pub whole: bool,
    /// The ids of the rows that are given.
    pub ids: Vec<String>,
    /// The metadata of each; empty: none has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<Option<Extra>>,
    /// Where to go on, if there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}

/// A vector that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hit {
    /// Its id.
    pub id: String,
    /// By the collection's metric: a cosine, a dot product, or a distance.
    pub score: f32,
    /// Its metadata, if it has any and it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Extra>,
}

/// A collection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Collection {
    /// Its name.
    pub name: String,
    /// Components of each vector.
    pub dimension: u32,
    /// How they are kept.
    pub dtype: Component,
    /// What "near" means.
    pub metric: Metric,
    /// Vectors in it.
    pub count: u64,
    /// Memory it takes, in bytes.
    pub bytes: u64,
}

/// What a search computes, in one place, since two that answer alike must round alike.
///
/// The score of a row is a sum of 32-bit terms: of products, or for [`Metric::L2`] of squared differences, negated. Component
/// `n` goes to the partial sum `n % 32`, in order, each product rounded before it is added. Then the partial sums are added
/// up by halves: the one with number `n + 16` to `n`, `n + 8` to `n`, and so on. For [`Metric::Cosine`] the sum is multiplied
/// with [`inverse_length`] of the row, and then with that of the query. Greater is nearer.
pub mod score {
    use super::{Filter, Metric};
    use crate::payload::Extra;
    use std::cmp::Ordering;

    /// Components beyond this could make a sum of 65536 squares overflow.
    pub const LARGEST: f32 = 1e16;
    /// A vector shorter than this has no direction to speak of.
    pub const SHORTEST: f64 = 1e-15;

    /// One over the length of a vector, computed in 64 bits.
    pub fn inverse_length(components: impl Iterator<Item = f32>) -> f32 {
        (1.0 / length(components)) as f32
    }

    /// The length of a vector, computed in 64 bits.
    pub fn length(components: impl Iterator<Item = f32>) -> f64 {
        components.map(|component| f64::from(component).powi(2)).sum::<f64>().sqrt()
    }

    /// A score as a caller is told of it.
    pub fn told(metric: Metric, score: f32) -> f32 {
        match metric {
            Metric::Cosine => score.clamp(-1.0, 1.0),
            Metric::Dot => score,
            // -0 is no distance.
            Metric::L2 => (0.0 - score).sqrt(),
        }
    }

    /// The better score is less. 0 and -0 are equally near, and no score is NaN.
    pub fn order(a: f32, b: f32) -> Ordering {
        b.partial_cmp(&a).unwrap_or(Ordering::Equal)
    }

    impl Filter {
        /// Whether its `metadata` lets a vector with this one through.
        pub fn allows(&self, metadata: Option<&Extra>) -> bool {
            self.metadata.iter().all(|(key, value)| metadata.is_some_and(|has| has.get(key) == Some(value)))
        }
    }
}
