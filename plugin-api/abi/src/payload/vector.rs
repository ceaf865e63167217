//! `vector.search/1`: collections of vectors that stay in memory, and the nearest of them to a query.
//!
//! Vectors may come as JSON or, in bulk, as the tensor [`VECTORS`], `[count, dimension]`: never both. Collections belong
//! to the tenant who made them.

use super::Extra;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the capability.
pub const CAPABILITY: &str = "vector.search";

/// Name of the tensor with vectors: those to keep, or the queries of a search.
pub const VECTORS: &str = "vectors";

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
}

/// How a component of a vector is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// What we do not know.
    #[serde(flatten)]
    pub extra: Extra,
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
