//! A search of a copy: every row is scored, the best are picked on the GPU, and equal ones are put in order here.

use super::copies::Held;
use crate::gpu::{Argument, Memory, Size};
use backplane_plugin::payload::vector::{Component, Metric, score};
use backplane_plugin::prelude::*;
use std::cmp::Ordering;

/// As in `vector-search.cu`: threads of a block, scores that are sorted together, and rows of a block of `scan`.
const THREADS: u32 = 256;
const CHUNK: usize = 2048;
fn scan_rows(component: Component) -> usize {
    match component {
        Component::F32 => 32,
        Component::F16 => 64,
        Component::I8 => 128,
    }
}

/// Hits of a query: with one more, half of what is sorted together.
pub const MOST: u32 = CHUNK as u32 / 2 - 1;
/// Bytes of scores that are kept at once: of more queries than that leaves room for, some come after the others.
const SCORES: usize = 256 << 20;
/// Rows that may be as near as the last hit before the owner is asked.
const EQUALS: usize = 8192;

/// What a query found: scores and rows, nearest first.
pub type Found = Vec<(f32, u32)>;

/// For each query the best rows, nearest first, of those that are chosen. `None` where too many are equally near.
pub fn scan(
    copy: &Held,
    queries: &[Vec<f32>],
    k: usize,
    chosen: Option<&[usize]>,
) -> Result<Option<Vec<Found>>> {
    let count = copy.ids.len();
    let k = k.min(chosen.map_or(count, <[usize]>::len));
    if k == 0 {
        return Ok(Some(vec![Vec::new(); queries.len()]));
    }
    let allowed = chosen.map(|chosen| {
        let mut bits = vec![0_u32; count.div_ceil(32)];
        chosen.iter().for_each(|row| bits[row / 32] |= 1 << (row % 32));
        Memory::of(&copy.gpu, &bytes(&bits, u32::to_le_bytes))
    });
    let allowed = allowed.transpose()?;
    // One more than wanted tells whether the last of them is as near as another one.
    let most = chosen.map_or(count, <[usize]>::len);
    let search = Pass { copy, k, found: (k + 1).min(most), allowed };
    let at_once = (SCORES / 4 / count).clamp(1, u16::MAX.into());
    let mut all = Vec::with_capacity(queries.len());
    for queries in queries.chunks(at_once) {
        let Some(found) = search.run(queries)? else { return Ok(None) };
        all.extend(found);
    }
    Ok(Some(all))
}

/// What is the same for all queries.
struct Pass<'a> {
    copy: &'a Held,
    k: usize,
    /// How many are looked for: `k`, or one more.
    found: usize,
    allowed: Option<Memory>,
}

impl Pass<'_> {
    fn run(&self, queries: &[Vec<f32>]) -> Result<Option<Vec<Found>>> {
        let Self { copy, k, found, .. } = *self;
        let (gpu, shape, count) = (&copy.gpu, copy.shape, copy.ids.len());
        let (width, chunks) = (shape.width(), count.div_ceil(CHUNK));
        let number = |number: usize| Argument::Number(number as i64);
        let launch = |entry: &str, blocks: usize, height: usize, arguments: &[Argument]| {
            let grid = [u32::try_from(blocks).unwrap_or(u32::MAX), height as u32, 1];
            gpu.launch(entry, Size { grid, block: [THREADS, 1, 1], shared: 0 }, arguments)
        };
        let mut padded = vec![0.0_f32; queries.len() * width];
        for (padded, query) in padded.chunks_exact_mut(width).zip(queries) {
            padded[..query.len()].copy_from_slice(query);
        }
        let factor = |query: &Vec<f32>| match shape.metric {
            Metric::Cosine => score::inverse_length(query.iter().copied()),
            Metric::Dot | Metric::L2 => 1.0,
        };
        let factors: Vec<f32> = queries.iter().map(factor).collect();
        let factors = Memory::of(gpu, &bytes(&factors, f32::to_le_bytes))?;
        let asked = Memory::of(gpu, &bytes(&padded, f32::to_le_bytes))?;
        let scores = Memory::alloc(gpu, queries.len() * count * 4)?;
        let metric = usize::from(shape.metric == Metric::L2);
        let (rows, scales) = (copy.rows.argument(), copy.scales.argument());
        let scan = [
            rows,
            scales,
            factors.argument(),
            asked.argument(),
            scores.argument(),
            number(count),
            number(width),
            number(queries.len()),
            number(metric),
        ];
        launch("scan", count.div_ceil(scan_rows(shape.dtype)), 1, &scan)?;
        let groups = count.div_ceil(THREADS as usize);
        if let Some(allowed) = &self.allowed {
            let hide = [scores.argument(), allowed.argument(), number(count)];
            launch("hide", groups, queries.len(), &hide)?;
        }
        let candidates = Memory::alloc(gpu, queries.len() * chunks * found * 8)?;
        let best = [scores.argument(), candidates.argument(), number(count), number(found)];
        launch("best", chunks, queries.len(), &best)?;
        let found_scores = Memory::alloc(gpu, queries.len() * found * 4)?;
        let found_rows = Memory::alloc(gpu, queries.len() * found * 4)?;
        let merge = [
            candidates.argument(),
            found_scores.argument(),
            found_rows.argument(),
            number(chunks * found),
            number(found),
        ];
        launch("merge", queries.len(), 1, &merge)?;
        let (near, places) = (floats(&found_scores.read()?), words(&found_rows.read()?));
        let mut all: Vec<Found> =
            near.chunks_exact(found).zip(places.chunks_exact(found)).map(pairs).collect();

        // Where the first that is left out is as near as the last that is not, the ids decide: all of them are needed.
        let is_open = |best: &Found| k < found && score::order(best[k - 1].0, best[k].0).is_eq();
        if all.iter().any(is_open) {
            // Of many queries of a small collection, room for more rows than there are would be gigabytes.
            let room = (k + EQUALS).min(count);
            let counts = Memory::alloc(gpu, queries.len() * 4)?;
            counts.zero()?;
            let gathered_scores = Memory::alloc(gpu, queries.len() * room * 4)?;
            let gathered_rows = Memory::alloc(gpu, queries.len() * room * 4)?;
            let gather = [
                scores.argument(),
                found_scores.argument(),
                counts.argument(),
                gathered_scores.argument(),
                gathered_rows.argument(),
                number(count),
                number(found),
                number(k - 1),
                number(room),
            ];
            launch("gather", groups, queries.len(), &gather)?;
            let (counts, near) = (words(&counts.read()?), floats(&gathered_scores.read()?));
            let places = words(&gathered_rows.read()?);
            for (query, best) in all.iter_mut().enumerate().filter(|(_, best)| is_open(best)) {
                let there = counts[query] as usize;
                if room < there {
                    return Ok(None);
                }
                let range = query * room..query * room + there;
                *best = pairs((&near[range.clone()], &places[range]));
            }
        }
        let in_order = |one: &(f32, u32), other: &(f32, u32)| -> Ordering {
            let ids = |row: u32| &copy.ids[row as usize];
            score::order(one.0, other.0).then_with(|| ids(one.1).cmp(ids(other.1)))
        };
        for best in &mut all {
            best.sort_unstable_by(in_order);
            best.truncate(k);
        }
        Ok(Some(all))
    }
}

fn pairs((scores, rows): (&[f32], &[u32])) -> Found {
    scores.iter().copied().zip(rows.iter().copied()).collect()
}

fn bytes<T: Copy>(numbers: &[T], bytes: fn(T) -> [u8; 4]) -> Vec<u8> {
    numbers.iter().flat_map(|number| bytes(*number)).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}
