//! One request: what it wants, whether it makes sense, and the answer.

use crate::collection::{Batch, News, Rows, Shape, Wanted, each_kind};
use crate::kernel::Component as _;
use crate::store::{Store, describe};
use backplane_plugin::Permit;
use backplane_plugin::payload::Extra;
use backplane_plugin::payload::vector::{
    self, Chunk as Answer, Component, Create, Delete, List, Metric, Operation, Part, ROWS, Read, Remove,
    Search, Upsert, VECTORS,
    score::{self, LARGEST, SHORTEST},
};
use backplane_plugin::prelude::*;
use half::f16;
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MAX_DIMENSION: u32 = 65_536;
const MAX_K: u32 = 10_000;
/// Hits of all queries of a search together.
const MAX_HITS: usize = 1_000_000;
const MAX_ID: usize = 512;
/// Bytes to score for each further thread: it takes some 20 µs to start one.
const PER_THREAD: u64 = 2 << 20;
/// Bytes of one answer to `read`.
const PER_PART: u64 = 32 << 20;

/// What it was asked so far.
#[derive(Debug, Default)]
pub struct Counters {
    pub searches: AtomicU64,
    pub scanned: AtomicU64,
}

/// Serves a request.
///
/// # Errors
/// What is wrong with it, or with the collection.
pub fn serve(store: &Store, counters: &Counters, seat: &Seat, request: &Request) -> Result<Done> {
    /// What is looked at first.
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        operation: Operation,
    }
    let tenant = request.tenant();
    let answer = match request.params::<Head>()?.operation {
        Operation::Search => search(store, counters, seat, request)?,
        Operation::Create => {
            let create: Create = request.params()?;
            known(&create.extra)?;
            no_tensors(request)?;
            name(&create.collection)?;
            if !(1..=MAX_DIMENSION).contains(&create.dimension) {
                let message =
                    format!("`dimension` is {}, and must be from 1 to {MAX_DIMENSION}", create.dimension);
                return Err(Error::invalid(message).with_param("dimension"));
            }
            let Create { dtype, metric, .. } = create;
            let shape = Shape { dimension: create.dimension as usize, dtype, metric };
            let made = store.create(tenant, &create.collection, shape)?;
            Answer { collections: Some(vec![made]), ..Answer::default() }
        }
        Operation::Upsert => {
            let upsert: Upsert = request.params()?;
            known(&upsert.extra)?;
            let held = store.get(tenant, &upsert.collection)?;
            let shape = held.read().shape;
            let (name, batch) = batch(request, upsert, shape)?;
            let count = batch.ids.len() as u64;
            store.upsert(&name, &held, batch)?;
            counted(count)
        }
        Operation::Delete => {
            let delete: Delete = request.params()?;
            known(&delete.extra)?;
            no_tensors(request)?;
            let held = store.get(tenant, &delete.collection)?;
            counted(store.delete(&delete.collection, &held, &delete.ids)?)
        }
        Operation::Drop => {
            let drop: Remove = request.params()?;
            known(&drop.extra)?;
            no_tensors(request)?;
            counted(store.drop(tenant, &drop.collection)?)
        }
        Operation::List => {
            let list: List = request.params()?;
            known(&list.extra)?;
            no_tensors(request)?;
            Answer { collections: Some(store.list(tenant)), ..Answer::default() }
        }
        Operation::Read => {
            request.push(&read(store, request)?)?;
            return Ok(Done::new());
        }
    };
    request.push_json(&answer)?;
    Ok(Done::new())
}

fn read(store: &Store, request: &Request) -> Result<Chunk> {
    let read: Read = request.params()?;
    known(&read.extra)?;
    no_tensors(request)?;
    let held = store.get(request.tenant(), &read.collection)?;
    // What of it is copied is copied while nobody writes, and no longer.
    let (news, collection) = {
        let held = held.read();
        (held.news(read.since.as_deref(), read.first, PER_PART), describe(&read.collection, &held))
    };
    let (count, dimension) = (news.places.len() as i64, i64::from(collection.dimension));
    let News { version, whole, places, ids, metadata, rows, next } = news;
    let part = Part { collection, version, whole, ids, metadata, next };
    let chunk = Chunk::json(&Answer { part: Some(part), ..Answer::default() })?;
    if count == 0 {
        return Ok(chunk);
    }
    let shape = [count, dimension];
    let vectors = each_kind!(rows, rows => Tensor::new(VECTORS, &shape, rows)?);
    Ok(chunk.tensor(Tensor::new(ROWS, &[count], places)?).tensor(vectors))
}

fn search(store: &Store, counters: &Counters, seat: &Seat, request: &Request) -> Result<Answer> {
    let search: Search = request.params()?;
    known(&search.extra)?;
    if !(1..=MAX_K).contains(&search.k) {
        let message = format!("`k` is {}, and must be from 1 to {MAX_K}", search.k);
        return Err(Error::invalid(message).with_param("k"));
    }
    let held = store.get(request.tenant(), &search.collection)?;
    let (shape, scanned) = {
        let collection = held.read();
        (collection.shape, collection.scanned())
    };
    // A query is never rounded to what rows are rounded to.
    let queries = vectors(request, &search.vectors, shape.dimension)?;
    let k = search.k as usize;
    if MAX_HITS / k < queries.len() {
        let message = format!(
            "{} queries of {k} hits each are more than {MAX_HITS} hits; send fewer at once",
            queries.len()
        );
        return Err(Error::invalid(message).with_param("k"));
    }
    for (number, query) in queries.iter().enumerate() {
        check(query, &shape, Component::F32, || format!("query {number}"))?;
    }
    let work = scanned.saturating_mul(queries.len() as u64);
    let want = (work / PER_THREAD + 1).min(u64::from(seat.threads.max(1)));
    let permit = permit(seat, want as u32, request)?;
    let late = || request.deadline().is_some_and(|deadline| deadline <= Instant::now());
    let left = || request.is_cancelled() || late();
    let wanted = Wanted { k, filter: search.filter.as_ref(), include_metadata: search.include_metadata };
    let count = queries.len() as u64;
    let results = {
        let collection = held.read();
        let queries: Vec<_> = queries.into_iter().map(|query| collection.query(query)).collect();
        collection.search(&queries, &wanted, permit.threads() as usize, &left)
    };
    drop(permit);
    if request.is_cancelled() {
        return Err(Error::cancelled());
    }
    if late() {
        return Err(Error::new(Code::DeadlineExceeded, "the search did not end before the deadline"));
    }
    counters.searches.fetch_add(count, Ordering::Relaxed);
    counters.scanned.fetch_add(work, Ordering::Relaxed);
    Ok(Answer { results: Some(results), ..Answer::default() })
}

/// Waits for CPU threads, for as long as anybody waits for the answer.
fn permit(seat: &Seat, want: u32, request: &Request) -> Result<Permit> {
    /// How long a request that was cancelled may go unnoticed here.
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        let look = Instant::now() + LOOK;
        let until = request.deadline().map_or(look, |deadline| deadline.min(look));
        match seat.threads(want, Some(until)) {
            Err(error) if error.code == Code::DeadlineExceeded && until == look => {
                if request.is_cancelled() {
                    return Err(Error::cancelled());
                }
            }
            granted => return granted,
        }
    }
}

fn batch(request: &Request, upsert: Upsert, shape: Shape) -> Result<(String, Batch)> {
    let Upsert { collection, ids, vectors: json, metadata, .. } = upsert;
    let rows = vectors(request, &json, shape.dimension)?;
    if ids.len() != rows.len() {
        let message = format!("there are {} `ids` for {} vectors", ids.len(), rows.len());
        return Err(Error::invalid(message).with_param("ids"));
    }
    if !metadata.is_empty() && metadata.len() != ids.len() {
        let message = format!(
            "there are {} `metadata` for {} vectors; say null where there is none",
            metadata.len(),
            ids.len()
        );
        return Err(Error::invalid(message).with_param("metadata"));
    }
    let mut seen = HashSet::with_capacity(ids.len());
    for id in &ids {
        if id.is_empty() || MAX_ID < id.len() {
            let message = format!("an id has {} bytes, and must have 1 to {MAX_ID}", id.len());
            return Err(Error::invalid(message).with_param("ids"));
        }
        if !seen.insert(id) {
            return Err(Error::invalid(format!("the id `{id}` is there twice")).with_param("ids"));
        }
    }
    for (id, row) in ids.iter().zip(&rows) {
        check(row, &shape, shape.dtype, || format!("vector `{id}`"))?;
    }
    let all = rows.iter().flatten().copied();
    let rows = match shape.dtype {
        Component::F32 => Rows::F32(all.collect()),
        Component::F16 => Rows::F16(all.map(f16::from_f32).collect()),
        Component::I8 => Rows::I8(all.map(|component| component as i8).collect()),
    };
    let mut metadata: Vec<_> = metadata.into_iter().map(|metadata| metadata.map(Box::new)).collect();
    metadata.resize(ids.len(), None);
    Ok((collection, Batch { ids: ids.into_iter().map(Arc::from).collect(), rows, metadata }))
}

/// The vectors of a request: from its JSON, or from its tensor.
fn vectors(request: &Request, json: &[Vec<f32>], dimension: usize) -> Result<Vec<Vec<f32>>> {
    let tensors = request.tensors()?;
    if let Some(other) = tensors.iter().find(|tensor| tensor.name() != VECTORS) {
        let message =
            format!("there is a tensor `{}`; the only one that is read is `{VECTORS}`", other.name());
        return Err(Error::invalid(message).with_param(other.name()));
    }
    let wrong = |message: String| Error::invalid(message).with_param(VECTORS);
    match (tensors.first(), json) {
        (None, []) => {
            Err(wrong(format!("`{VECTORS}` is missing: as JSON, or as a tensor [count, {dimension}]")))
        }
        (None, json) => match json.iter().find(|vector| vector.len() != dimension) {
            Some(other) => Err(wrong(format!(
                "a vector has {} components, and the collection's have {dimension}",
                other.len()
            ))),
            None => Ok(json.to_vec()),
        },
        (Some(tensor), []) => {
            let rows = match tensor.shape() {
                [rows, width] if *width == dimension as i64 => *rows,
                [width] if *width == dimension as i64 => 1,
                shape => {
                    return Err(wrong(format!(
                        "tensor `{VECTORS}` is {shape:?}, and must be [count, {dimension}]"
                    )));
                }
            };
            if rows == 0 {
                return Err(wrong(format!("tensor `{VECTORS}` has no row")));
            }
            Ok(match tensor.dtype() {
                DType::Fp32 => cut(&tensor.elements::<f32>()?, dimension),
                DType::Fp16 => cut(&tensor.elements::<f16>()?, dimension),
                DType::Int8 => cut(&tensor.elements::<i8>()?, dimension),
                other => {
                    return Err(wrong(format!(
                        "tensor `{VECTORS}` is {}, and must be FP32, FP16 or INT8",
                        other.name()
                    )));
                }
            })
        }
        (Some(_), _) => {
            Err(wrong(format!("`{VECTORS}` is there twice, as JSON and as a tensor; send one of them")))
        }
    }
}

fn cut<C: crate::kernel::Component>(elements: &[C], dimension: usize) -> Vec<Vec<f32>> {
    elements
        .chunks_exact(dimension)
        .map(|row| row.iter().map(|component| component.value()).collect())
        .collect()
}

/// Whether a vector can be kept as `dtype`, and has the direction that a cosine needs.
fn check(vector: &[f32], shape: &Shape, dtype: Component, which: impl Fn() -> String) -> Result<()> {
    let wrong = |what: String| Err(Error::invalid(format!("{} {what}", which())).with_param(VECTORS));
    let fits = |component: &f32| match dtype {
        Component::F32 => component.abs() <= LARGEST,
        Component::F16 => component.abs() <= f16::MAX.to_f32(),
        Component::I8 => (-128.0..=127.0).contains(component) && component.fract() == 0.0,
    };
    if let Some(component) = vector.iter().find(|component| !fits(component)) {
        let needs = match dtype {
            Component::F32 => format!("a number from -{LARGEST:e} to {LARGEST:e}"),
            Component::F16 => "a number from -65504 to 65504, or the collection one of dtype f32".to_owned(),
            Component::I8 => "a whole number from -128 to 127: scale the vectors first".to_owned(),
        };
        return wrong(format!("has the component {component}, which must be {needs}"));
    }
    let kept = |component: &f32| match dtype {
        Component::F16 => f16::from_f32(*component).value(),
        Component::F32 | Component::I8 => *component,
    };
    let length = || score::length(vector.iter().map(kept));
    if shape.metric == Metric::Cosine && length() < SHORTEST {
        return wrong(
            "is zero, and has no direction, which a cosine needs; take the metric dot or l2".to_owned(),
        );
    }
    Ok(())
}

fn name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || 64 < name.len() || !name.chars().all(good) || name.starts_with('.') {
        let message = "`collection` must be 1 to 64 letters, digits, `.`, `_` or `-`, and not begin with `.`";
        return Err(Error::invalid(message).with_param("collection"));
    }
    Ok(())
}

/// Refuses a member that means nothing.
fn known(extra: &Extra) -> Result<()> {
    match extra.keys().find(|name| *name != "operation") {
        Some(name) => {
            Err(Error::invalid(format!("this operation has no parameter `{name}`")).with_param(name))
        }
        None => Ok(()),
    }
}

fn no_tensors(request: &Request) -> Result<()> {
    match request.tensors()?.first() {
        Some(tensor) => {
            Err(Error::invalid(format!("this operation reads no tensor, and there is `{}`", tensor.name()))
                .with_param(tensor.name()))
        }
        None => Ok(()),
    }
}

fn counted(count: u64) -> vector::Chunk {
    vector::Chunk { count: Some(count), ..vector::Chunk::default() }
}
