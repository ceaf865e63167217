//! A collection: rows in one block of memory, and the exact search of them.

use crate::kernel::{Component as _, Nearly, Whole};
use crate::sys::{Kernel, byte_scores, scores, whole_scores};
use crate::top::{Scored, Top};
use backplane_plugin::payload::Extra;
use backplane_plugin::payload::vector::{Component, Filter, Hit, Metric, score};
use half::f16;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of rows that are scored against all queries of a batch before the next ones are read: they stay in the cache of
/// a core meanwhile.
const TILE: usize = 128 << 10;
/// Memory that an id takes besides its bytes, twice its place in a table and its row's bookkeeping.
const PER_ROW: u64 = 104;

/// What a collection is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    pub dimension: usize,
    pub dtype: Component,
    pub metric: Metric,
}

impl Shape {
    /// Bytes of a vector.
    pub fn stride(&self) -> usize {
        self.dimension
            * match self.dtype {
                Component::F32 => 4,
                Component::F16 => 2,
                Component::I8 => 1,
            }
    }
}

/// Vectors, as a collection keeps them.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    F32(Vec<f32>),
    F16(Vec<f16>),
    I8(Vec<i8>),
}

/// Does the same to rows of each kind.
macro_rules! each_kind {
    ($rows:expr, $bound:ident => $does:expr) => {
        match $rows {
            Rows::F32($bound) => $does,
            Rows::F16($bound) => $does,
            Rows::I8($bound) => $does,
        }
    };
}
pub(crate) use each_kind;

impl Rows {
    pub fn none(dtype: Component) -> Self {
        match dtype {
            Component::F32 => Self::F32(Vec::new()),
            Component::F16 => Self::F16(Vec::new()),
            Component::I8 => Self::I8(Vec::new()),
        }
    }

    /// Components, not rows.
    pub fn len(&self) -> usize {
        each_kind!(self, rows => rows.len())
    }

    /// Puts row `from` of `other`, which is of the same kind, in the place of row `to`, or behind the last.
    fn put(&mut self, to: usize, other: &Self, from: usize, dimension: usize) {
        fn put<C: Copy>(rows: &mut Vec<C>, to: usize, other: &[C], from: usize, dimension: usize) {
            let row = &other[from * dimension..(from + 1) * dimension];
            match rows.get_mut(to * dimension..(to + 1) * dimension) {
                Some(place) => place.copy_from_slice(row),
                None => rows.extend_from_slice(row),
            }
        }
        match (self, other) {
            (Self::F32(rows), Self::F32(other)) => put(rows, to, other, from, dimension),
            (Self::F16(rows), Self::F16(other)) => put(rows, to, other, from, dimension),
            (Self::I8(rows), Self::I8(other)) => put(rows, to, other, from, dimension),
            // Both come from one shape.
            _ => {}
        }
    }

    /// Moves the last row into the place of `row`.
    fn swap_remove(&mut self, row: usize, dimension: usize) {
        each_kind!(self, rows => {
            let last = rows.len() - dimension;
            rows.copy_within(last.., row * dimension);
            rows.truncate(last);
        });
    }

    /// One over the length of a row.
    fn inverse_length(&self, row: usize, dimension: usize) -> f32 {
        each_kind!(self, rows => {
            let row = &rows[row * dimension..(row + 1) * dimension];
            score::inverse_length(row.iter().map(|component| component.value()))
        })
    }

    /// Some rows, one behind the other.
    fn picked(&self, picked: &[u32], dimension: usize) -> Self {
        fn pick<C: Copy>(rows: &[C], picked: &[u32], dimension: usize) -> Vec<C> {
            picked.iter().flat_map(|&row| &rows[row as usize * dimension..][..dimension]).copied().collect()
        }
        match self {
            Self::F32(rows) => Self::F32(pick(rows, picked, dimension)),
            Self::F16(rows) => Self::F16(pick(rows, picked, dimension)),
            Self::I8(rows) => Self::I8(pick(rows, picked, dimension)),
        }
    }
}

/// Vectors to keep, checked: as many ids as rows and metadata, each id once.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub ids: Vec<Arc<str>>,
    pub rows: Rows,
    pub metadata: Vec<Option<Box<Extra>>>,
}

/// Vectors that are kept, in the order of their rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contents<'a> {
    pub ids: &'a [Arc<str>],
    pub rows: &'a Rows,
    pub metadata: &'a [Option<Box<Extra>>],
}

/// Rows that somebody who keeps a copy does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// What the collection is now.
    pub version: String,
    /// Whether the copy has to begin anew.
    pub whole: bool,
    /// Places of the rows.
    pub places: Vec<u32>,
    pub ids: Vec<String>,
    pub metadata: Vec<Option<Extra>>,
    pub rows: Rows,
    /// The first row that was left out for want of room.
    pub next: Option<u32>,
}

/// A query.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    components: Vec<f32>,
    /// The same in whole numbers, if it is of such and the scores are the same bits.
    whole: Option<Whole>,
    /// Else nearly the same, where whole numbers are enough to pass over most rows.
    nearly: Option<Nearly>,
    /// What a score is multiplied with in the end: for cosines, one over its length.
    factor: f32,
}

/// What a search wants.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub k: usize,
    pub filter: Option<&'a Filter>,
    pub include_metadata: bool,
}

/// A collection in memory.
#[derive(Debug)]
pub struct Collection {
    pub shape: Shape,
    rows: Rows,
    /// For [`Metric::Cosine`]: one over the length of each row.
    inverse: Vec<f32>,
    ids: Vec<Arc<str>>,
    metadata: Vec<Option<Box<Extra>>>,
    places: HashMap<Arc<str>, u32>,
    /// Bytes of ids and metadata.
    text: u64,
    /// How often it was changed, and when each row was the last time.
    revision: u64,
    changed: Vec<u64>,
    /// Tells it from every other, and from itself before a restart.
    epoch: u64,
}

impl Collection {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            rows: Rows::none(shape.dtype),
            inverse: Vec::new(),
            ids: Vec::new(),
            metadata: Vec::new(),
            places: HashMap::new(),
            text: 0,
            revision: 0,
            changed: Vec::new(),
            epoch: RandomState::new().hash_one(0),
        }
    }

    /// How many vectors.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Memory it takes, about.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * (self.shape.stride() as u64 + PER_ROW) + self.text
    }

    /// Memory a batch takes, about.
    pub fn bytes_of(&self, batch: &Batch) -> u64 {
        let text = batch.ids.iter().zip(&batch.metadata).map(|(id, metadata)| text(id, metadata));
        batch.ids.len() as u64 * (self.shape.stride() as u64 + PER_ROW) + text.sum::<u64>()
    }

    /// Bytes that a search reads.
    pub fn scanned(&self) -> u64 {
        (self.len() * self.shape.stride()) as u64
    }

    /// Everything in it.
    pub fn contents(&self) -> Contents<'_> {
        Contents { ids: &self.ids, rows: &self.rows, metadata: &self.metadata }
    }

    /// Keeps vectors, in the place of those with the same ids.
    pub fn upsert(&mut self, batch: Batch) {
        let dimension = self.shape.dimension;
        self.revision += 1;
        for (from, (id, metadata)) in batch.ids.into_iter().zip(batch.metadata).enumerate() {
            let to = self.places.get(&id).map_or(self.len(), |place| *place as usize);
            self.rows.put(to, &batch.rows, from, dimension);
            self.text += text(&id, &metadata);
            if to == self.len() {
                self.places.insert(id.clone(), to as u32);
                self.ids.push(id);
                self.metadata.push(metadata);
                self.inverse.push(0.0);
                self.changed.push(0);
            } else {
                self.text -= text(&self.ids[to], &self.metadata[to]);
                self.metadata[to] = metadata;
            }
            self.changed[to] = self.revision;
            if self.shape.metric == Metric::Cosine {
                self.inverse[to] = self.rows.inverse_length(to, dimension);
            }
        }
    }

    /// Lets vectors go; says how many were there.
    pub fn delete<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) -> u64 {
        let before = self.len();
        self.revision += 1;
        for id in ids {
            let Some(place) = self.places.remove(id) else { continue };
            let row = place as usize;
            self.rows.swap_remove(row, self.shape.dimension);
            self.inverse.swap_remove(row);
            self.changed.swap_remove(row);
            self.text -= text(&self.ids[row], &self.metadata[row]);
            self.ids.swap_remove(row);
            self.metadata.swap_remove(row);
            if let Some(moved) = self.ids.get(row) {
                self.places.insert(moved.clone(), place);
                self.changed[row] = self.revision;
            }
        }
        (before - self.len()) as u64
    }

    /// What is new since `since`, a version, from row `first` on: as many rows as have about `most` bytes.
    pub fn news(&self, since: Option<&str>, first: u32, most: u64) -> News {
        let known = since.and_then(|since| {
            let (epoch, revision) = since.split_once('-')?;
            (u64::from_str_radix(epoch, 16).ok()? == self.epoch).then(|| revision.parse::<u64>().ok())?
        });
        let (mut bytes, mut places, mut next) = (0, Vec::new(), None);
        for row in first as usize..self.len() {
            if known.is_some_and(|revision| self.changed[row] <= revision) {
                continue;
            }
            // One row at the least, or nobody would get on.
            if most < bytes && !places.is_empty() {
                next = Some(row as u32);
                break;
            }
            bytes += self.shape.stride() as u64 + text(&self.ids[row], &self.metadata[row]);
            places.push(row as u32);
        }
        let metadata = |place: &u32| self.metadata[*place as usize].as_deref().cloned();
        let metadata: Vec<Option<Extra>> = places.iter().map(metadata).collect();
        News {
            version: format!("{:x}-{}", self.epoch, self.revision),
            whole: known.is_none(),
            ids: places.iter().map(|place| self.ids[*place as usize].to_string()).collect(),
            metadata: if metadata.iter().all(Option::is_none) { Vec::new() } else { metadata },
            rows: self.rows.picked(&places, self.shape.dimension),
            places,
            next,
        }
    }

    /// Whether an id is there.
    pub fn has(&self, id: &str) -> bool {
        self.places.contains_key(id)
    }

    /// The best rows for each query, nearest first. Works on `threads` threads, this one among them. `left` is asked now and then; when it says so the search ends early, with nothing.
    pub fn search(
        &self,
        queries: &[Query],
        wanted: &Wanted<'_>,
        threads: usize,
        left: &(dyn Fn() -> bool + Sync),
    ) -> Vec<Vec<Hit>> {
        let chosen = wanted.filter.map(|filter| self.chosen(filter));
        let count = chosen.as_ref().map_or(self.len(), Vec::len);
        // What cannot be hit needs no place either.
        let k = wanted.k.min(count);
        if k == 0 {
            return queries.iter().map(|_| Vec::new()).collect();
        }
        let share = count.div_ceil(threads.clamp(1, count));
        let part = |part: usize| {
            let range = part * share..((part + 1) * share).min(count);
            match &chosen {
                Some(rows) => self.scan_chosen(&rows[range], queries, k, left),
                None => self.scan(range, queries, k, left),
            }
        };
        let (first, others) = side_by_side(count.div_ceil(share), &part);
        if others.is_empty() {
            return first.into_iter().map(|best| self.hits(best, wanted.include_metadata)).collect();
        }
        let mut tops = self.tops(queries, k);
        for found in others.into_iter().chain([first]) {
            for (top, found) in tops.iter_mut().zip(found) {
                found.into_iter().for_each(|scored| top.put(scored));
            }
        }
        tops.into_iter().map(|top| self.hits(top.into_sorted(), wanted.include_metadata)).collect()
    }

    /// A query as a search takes it.
    pub fn query(&self, components: Vec<f32>) -> Query {
        let factor = match self.shape.metric {
            Metric::Cosine => score::inverse_length(components.iter().copied()),
            Metric::Dot | Metric::L2 => 1.0,
        };
        let of_bytes = self.shape.dtype == Component::I8;
        let whole = Whole::of(&components).filter(|whole| of_bytes && whole.is_exact(self.kernel()));
        let nearly = match whole {
            None if of_bytes && self.kernel() == Kernel::Dot => Nearly::of(&components),
            _ => None,
        };
        Query { whole, nearly, components, factor }
    }

    /// Equal scores are ordered by id.
    fn tops(&self, queries: &[Query], k: usize) -> Vec<Top<impl Fn(u32, u32) -> Ordering>> {
        let tie = |a: u32, b: u32| self.ids[a as usize].cmp(&self.ids[b as usize]);
        queries.iter().map(|_| Top::new(k, tie)).collect()
    }

    fn scan(
        &self,
        range: Range<usize>,
        queries: &[Query],
        k: usize,
        left: &dyn Fn() -> bool,
    ) -> Vec<Vec<Scored>> {
        let mut tops = self.tops(queries, k);
        let tile = (TILE / self.shape.stride()).max(1);
        let mut buffer = vec![0.0; tile];
        // Where many rows are hits, a look at which may be is one more.
        let few = k <= range.len() / 64;
        for first in range.clone().step_by(tile) {
            if left() {
                break;
            }
            let rows = first..(first + tile).min(range.end);
            let scores = &mut buffer[..rows.len()];
            for (query, top) in queries.iter().zip(&mut tops) {
                match query.nearly.as_ref().filter(|_| few) {
                    Some(nearly) => {
                        self.bound(rows.clone(), query, nearly, scores);
                        top.offer(first as u32, scores, |row, _| self.score_of(row, query));
                    }
                    None => {
                        self.score(rows.clone(), query, scores);
                        top.offer(first as u32, scores, |_, score| score);
                    }
                }
            }
        }
        tops.into_iter().map(Top::into_sorted).collect()
    }

    fn scan_chosen(
        &self,
        rows: &[u32],
        queries: &[Query],
        k: usize,
        left: &dyn Fn() -> bool,
    ) -> Vec<Vec<Scored>> {
        let mut tops = self.tops(queries, k);
        for (number, &row) in rows.iter().enumerate() {
            if number % 1024 == 0 && left() {
                break;
            }
            for (query, top) in queries.iter().zip(&mut tops) {
                top.put(Scored { score: self.score_of(row, query), row });
            }
        }
        tops.into_iter().map(Top::into_sorted).collect()
    }

    fn kernel(&self) -> Kernel {
        match self.shape.metric {
            Metric::Cosine | Metric::Dot => Kernel::Dot,
            Metric::L2 => Kernel::Distance,
        }
    }

    /// The score of a row.
    fn score_of(&self, row: u32, query: &Query) -> f32 {
        let mut score = [0.0];
        self.score(row as usize..row as usize + 1, query, &mut score);
        score[0]
    }

    /// Scores of neighbouring rows.
    fn score(&self, rows: Range<usize>, query: &Query, out: &mut [f32]) {
        let (kernel, part) = (self.kernel(), self.part(&rows));
        match (&self.rows, &query.whole) {
            (Rows::I8(all), Some(whole)) => whole_scores(kernel, &all[part], &whole.components, out),
            (Rows::I8(all), None) => byte_scores(kernel, &all[part], &query.components, out),
            (Rows::F32(all), _) => scores(kernel, &all[part], &query.components, out),
            (Rows::F16(all), _) => scores(kernel, &all[part], &query.components, out),
        }
        self.scaled(rows, query, out);
    }

    /// What the scores of neighbouring rows of bytes are not above.
    fn bound(&self, rows: Range<usize>, query: &Query, nearly: &Nearly, out: &mut [f32]) {
        if let Rows::I8(all) = &self.rows {
            whole_scores(Kernel::Dot, &all[self.part(&rows)], &nearly.components, out);
            nearly.bounds(out);
        }
        // A bound is still one when it and the score are rounded alike.
        self.scaled(rows, query, out);
    }

    /// Components of neighbouring rows.
    fn part(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.shape.dimension..rows.end * self.shape.dimension
    }

    /// Makes cosines of dot products.
    fn scaled(&self, rows: Range<usize>, query: &Query, out: &mut [f32]) {
        if self.shape.metric == Metric::Cosine {
            let inverse = &self.inverse[rows];
            out.iter_mut().zip(inverse).for_each(|(score, inverse)| *score = *score * inverse * query.factor);
        }
    }

    /// Rows that a filter lets through, in order.
    fn chosen(&self, filter: &Filter) -> Vec<u32> {
        let fits = |row: u32| filter.allows(self.metadata[row as usize].as_deref());
        let mut rows: Vec<u32> = match &filter.ids {
            Some(ids) => ids.iter().filter_map(|id| self.places.get(id.as_str()).copied()).collect(),
            None => (0..self.len() as u32).collect(),
        };
        rows.retain(|row| fits(*row));
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    fn hits(&self, best: Vec<Scored>, include_metadata: bool) -> Vec<Hit> {
        let hit = |Scored { score, row }| Hit {
            id: self.ids[row as usize].to_string(),
            score: score::told(self.shape.metric, score),
            metadata: self.metadata[row as usize].as_deref().filter(|_| include_metadata).cloned(),
        };
        best.into_iter().map(hit).collect()
    }
}

/// Results of parts `0..count`, each on a thread of its own but for the first, which is this one's.
fn side_by_side<R: Send>(count: usize, part: &(impl Fn(usize) -> R + Sync)) -> (R, Vec<R>) {
    std::thread::scope(|scope| {
        let spawn = |number: usize| {
            let thread = std::thread::Builder::new().name("search".to_owned());
            thread.spawn_scoped(scope, move || part(number))
        };
        let others: Vec<_> = (1..count).map(spawn).collect();
        let first = part(0);
        // Where no thread could be had this one does the work.
        let finish = |(number, thread): (usize, std::io::Result<std::thread::ScopedJoinHandle<'_, R>>)| {
            thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| part(number))
        };
        (first, (1..).zip(others).map(finish).collect())
    })
}

/// Bytes of an id, which is kept once, and of metadata, about.
fn text(id: &str, metadata: &Option<Box<Extra>>) -> u64 {
    let size = |metadata: &Extra| {
        // A member takes a place in the map and its texts.
        metadata.iter().map(|(key, value)| 96 + key.len() as u64 + weight(value)).sum::<u64>()
    };
    id.len() as u64 + metadata.as_deref().map_or(0, size)
}

fn weight(value: &serde_json::Value) -> u64 {
    match value {
        serde_json::Value::String(text) => text.len() as u64,
        serde_json::Value::Array(items) => items.iter().map(|item| 32 + weight(item)).sum(),
        serde_json::Value::Object(members) => {
            members.iter().map(|(key, value)| 96 + key.len() as u64 + weight(value)).sum()
        }
        _ => 0,
    }
}

#[cfg(test)]
#[path = "collection_tests.rs"]
mod tests;
