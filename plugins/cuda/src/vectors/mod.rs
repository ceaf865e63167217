//! `vector.search` on a GPU.
//!
//! Collections belong to the vector plugin: it keeps them in memory and on disk. Here are copies of them on the GPU, and
//! searches of those, which give the very bits that the other plugin's do. A copy is brought up to date before each search by
//! the operation `read`. What is no plain search is handed on, so that one plugin says what is allowed and what is wrong.
//!
//! - [`copies`]: the copies, and how they follow; [`scan`]: a search of one.

mod copies;
mod scan;

use crate::gpu::Driver;
use backplane_plugin::payload::vector::{
    CAPABILITY, Chunk as Answer, Hit, Operation, Search, VECTORS, score,
};
use backplane_plugin::prelude::*;
use copies::{Copies, Held, value};
use serde::Deserialize;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Name of the model.
pub const MODEL: &str = "vectors-cuda";
/// The model that the collections belong to.
const OWNER: &str = "vectors";
/// Hits of a query that are looked for here.
const MOST: u32 = scan::MOST;
/// Hits of all queries of a search together, as the owner allows.
const MOST_HITS: usize = 1_000_000;

/// The claim where there is a GPU: above what the owner claims once a core reads its largest collection for a millisecond,
/// below that before.
pub fn bid() -> Bid {
    let text = format!("on a GPU, exactly, on copies of the collections of `{OWNER}`");
    Bid { score: 550, valid_ms: 1_000, text, ..Bid::default() }
}

/// The opened model.
pub struct VectorModel {
    driver: Arc<dyn Driver>,
    memory: u64,
}

impl VectorModel {
    /// # Errors
    /// That there is no GPU, or a parameter is given.
    pub fn open(driver: Arc<dyn Driver>, memory: u64, model: &ModelSpec) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parameters {}
        let Parameters {} = model.parameters()?;
        driver.check(true).map_err(|(_, error)| error)?;
        Ok(Self { driver, memory })
    }
}

impl Model for VectorModel {
    fn execution(&self) -> Execution {
        Execution::Serial { max_batch: 1 }
    }

    fn describe(&self) -> Description {
        Description { platform: Some(crate::FORMAT.to_owned()), ..Description::default() }
    }

    /// One that is to replace a broken one begins with no copy.
    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        let copies = Mutex::new(Copies::new(self.driver.clone(), self.memory)?);
        Ok(each(move |request| {
            let mut copies = copies.lock().unwrap_or_else(PoisonError::into_inner);
            match search(&mut copies, request)? {
                Some(answer) => request.push_json(&answer)?,
                None => hand_on(request)?,
            }
            Ok(Done::new())
        }))
    }
}

/// Has the owner answer.
fn hand_on(request: &Request) -> Result<()> {
    let params: Value = request.params()?;
    let call = request.call(CAPABILITY).model(OWNER).params(&params)?;
    let answer = request.tensors()?.into_iter().fold(call, |call, tensor| call.tensor(tensor)).wait()?;
    let mut chunks = answer.chunks::<Value>()?.into_iter();
    let mut first = chunks.next().map_or_else(|| Ok(Chunk::new()), |json| Chunk::json(&json))?;
    for tensor in &answer.tensors {
        first = first.tensor(tensor.view());
    }
    request.push(&first)?;
    chunks.try_for_each(|json| request.push_json(&json))
}

/// The answer to a plain search; `None` for everything else, and whatever may be wrong with it.
fn search(copies: &mut Copies, request: &Request) -> Result<Option<Answer>> {
    /// What is looked at first.
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        operation: Operation,
    }
    if !request.params::<Head>().is_ok_and(|head| head.operation == Operation::Search) {
        return Ok(None);
    }
    let Ok(search) = request.params::<Search>() else { return Ok(None) };
    if !(1..=MOST).contains(&search.k) || search.extra.keys().any(|name| name != "operation") {
        return Ok(None);
    }
    let Some(queries) = queries(request, &search.vectors)? else { return Ok(None) };
    if MOST_HITS / (search.k as usize) < queries.len() {
        return Ok(None);
    }
    let Some(copy) = copies.follow(request, &search.collection)? else { return Ok(None) };
    if !queries.iter().all(|query| copy.takes(query)) {
        return Ok(None);
    }
    if request.is_cancelled() {
        return Err(Error::cancelled());
    }
    if request.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(Error::new(Code::DeadlineExceeded, "the deadline passed before the search was started"));
    }
    let chosen = search.filter.as_ref().map(|filter| {
        let ids = filter.ids.as_ref().map(|ids| ids.iter().map(String::as_str).collect::<HashSet<_>>());
        let fits = |row: usize| {
            ids.as_ref().is_none_or(|ids| ids.contains(&*copy.ids[row]))
                && filter.allows(copy.metadata[row].as_deref())
        };
        (0..copy.ids.len()).filter(|row| fits(*row)).collect::<Vec<_>>()
    });
    let Some(found) = scan::scan(copy, &queries, search.k as usize, chosen.as_deref())? else {
        return Ok(None);
    };
    let hits = found.into_iter().map(|found| hits(copy, &found, search.include_metadata)).collect();
    Ok(Some(Answer { results: Some(hits), ..Answer::default() }))
}

fn hits(copy: &Held, found: &[(f32, u32)], include_metadata: bool) -> Vec<Hit> {
    let hit = |&(score, row): &(f32, u32)| Hit {
        id: copy.ids[row as usize].to_string(),
        score: score::told(copy.shape.metric, score),
        metadata: copy.metadata[row as usize].as_deref().filter(|_| include_metadata).cloned(),
    };
    found.iter().map(hit).collect()
}

/// The queries of a request, from its JSON or from its tensor. `None` where they are not as they have to be.
fn queries(request: &Request, json: &[Vec<f32>]) -> Result<Option<Vec<Vec<f32>>>> {
    let tensors = request.tensors()?;
    Ok(match (&tensors[..], json) {
        ([], [_, ..]) => Some(json.to_vec()),
        ([tensor], []) if tensor.name() == VECTORS => {
            let width = tensor.shape().last().copied().unwrap_or(0);
            let value = value(tensor.dtype());
            let is_matrix = matches!(tensor.shape(), [_] | [_, _]) && 0 < width && !tensor.is_empty();
            match value.filter(|_| is_matrix) {
                Some((size, value)) => {
                    let rows = tensor.bytes().chunks_exact(size * width as usize);
                    Some(rows.map(|row| row.chunks_exact(size).map(value).collect()).collect())
                }
                None => None,
            }
        }
        _ => None,
    })
}
