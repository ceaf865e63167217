//! Copies of collections on the GPU, and how they follow what they are copies of.

use super::OWNER;
use crate::gpu::{Driver, Gpu, Memory, Program};
use backplane_plugin::Answer;
use backplane_plugin::payload::Extra;
use backplane_plugin::payload::vector::{
    CAPABILITY, Chunk, Collection, Component, Metric, Params, Part, ROWS, Read, VECTORS, score,
};
use backplane_plugin::prelude::*;
use half::f16;
use std::collections::HashMap;
use std::sync::Arc;

/// A collection that changes faster than it can be read is searched by its owner: it is read so often at most.
const ROUNDS: usize = 4;
/// Rows for which a copy has room at first.
const ROOM: usize = 1024;
/// Every row begins at a multiple of so many bytes, so that it can be read by as many at once.
const ALIGN: usize = 16;

/// What a collection is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub dimension: usize,
    pub dtype: Component,
    pub metric: Metric,
}

impl Shape {
    fn of(collection: &Collection) -> Self {
        let Collection { dimension, dtype, metric, .. } = *collection;
        Self { dimension: dimension as usize, dtype, metric }
    }

    /// Bytes of a component.
    fn size(&self) -> usize {
        match self.dtype {
            Component::F32 => 4,
            Component::F16 => 2,
            Component::I8 => 1,
        }
    }

    /// Bytes from one row to the next.
    fn stride(&self) -> usize {
        (self.dimension * self.size()).next_multiple_of(ALIGN)
    }

    /// Components from one row to the next.
    pub fn width(&self) -> usize {
        self.stride() / self.size()
    }
}

/// Bytes of a component, and how its value is read.
type Reader = (usize, fn(&[u8]) -> f32);

/// How a component of a tensor is read, if vectors may be of it.
pub fn value(dtype: DType) -> Option<Reader> {
    Some(match dtype {
        DType::Fp32 => (4, |bytes| bytes.try_into().map_or(0.0, f32::from_le_bytes)),
        DType::Fp16 => (2, |bytes| bytes.try_into().map_or(0.0, |bytes| f16::from_le_bytes(bytes).to_f32())),
        DType::Int8 => (1, |bytes| bytes.first().map_or(0.0, |byte| f32::from(*byte as i8))),
        _ => return None,
    })
}

/// A copy of a collection.
pub struct Held {
    pub gpu: Arc<dyn Gpu>,
    pub shape: Shape,
    /// The matrix, and what scores of its rows are multiplied with.
    pub rows: Memory,
    pub scales: Memory,
    /// Rows for which there is room.
    room: usize,
    pub ids: Vec<Arc<str>>,
    pub metadata: Vec<Option<Box<Extra>>>,
    version: Option<String>,
    used: u64,
}

impl Held {
    fn new(gpu: Arc<dyn Gpu>, shape: Shape) -> Result<Self> {
        let room = ROOM;
        let (rows, scales) = (Memory::alloc(&gpu, room * shape.stride())?, Memory::alloc(&gpu, room * 4)?);
        let (ids, metadata) = (Vec::new(), Vec::new());
        Ok(Self { gpu, shape, rows, scales, room, ids, metadata, version: None, used: 0 })
    }

    /// Whether it can be asked this: what cannot is for the owner to refuse.
    pub fn takes(&self, query: &[f32]) -> bool {
        query.len() == self.shape.dimension
            && query.iter().all(|component| component.abs() <= score::LARGEST)
            && (self.shape.metric != Metric::Cosine
                || score::SHORTEST <= score::length(query.iter().copied()))
    }

    /// Bytes on the GPU.
    fn bytes(&self) -> u64 {
        bytes(self.shape, self.room)
    }

    /// Has room for so many rows.
    fn grow(&mut self, count: usize) -> Result<()> {
        if count <= self.room {
            return Ok(());
        }
        let room = roomy(count);
        let stride = self.shape.stride();
        self.rows = self.rows.grown(room * stride, self.ids.len() * stride)?;
        self.scales = self.scales.grown(room * 4, self.ids.len() * 4)?;
        self.room = room;
        Ok(())
    }

    /// Takes rows in.
    fn take(&mut self, part: Part, places: &[u32], vectors: &[u8]) -> Result<()> {
        let count = part.collection.count as usize;
        self.grow(count)?;
        self.ids.resize(count, Arc::from(""));
        self.metadata.resize(count, None);
        let Some((size, value)) = value(dtype(self.shape.dtype)) else { return Err(odd("has no type")) };
        let (packed, stride) = (self.shape.dimension * size, self.shape.stride());
        let is_whole = part.ids.len() == places.len()
            && vectors.len() == places.len() * packed
            && (part.metadata.is_empty() || part.metadata.len() == places.len())
            && places.iter().all(|place| (*place as usize) < count);
        if !is_whole {
            return Err(odd("is not as long as it says"));
        }
        let rows = || vectors.chunks_exact(packed);
        let scale = |row: &[u8]| match self.shape.metric {
            Metric::Cosine => score::inverse_length(row.chunks_exact(size).map(value)),
            Metric::Dot | Metric::L2 => 1.0,
        };
        let scales: Vec<f32> = rows().map(scale).collect();
        // Rows that lie side by side go together: after the first time that is most often all of them, or one.
        let mut from = 0;
        for run in places.chunk_by(|one, next| one.checked_add(1) == Some(*next)) {
            let (first, end) = (run[0] as usize, from + run.len());
            if packed == stride {
                self.rows.write(first * stride, &vectors[from * packed..end * packed])?;
            } else {
                let mut padded = vec![0; run.len() * stride];
                for (padded, row) in padded.chunks_exact_mut(stride).zip(rows().skip(from)) {
                    padded[..packed].copy_from_slice(row);
                }
                self.rows.write(first * stride, &padded)?;
            }
            let scales: Vec<u8> = scales[from..end].iter().flat_map(|scale| scale.to_le_bytes()).collect();
            self.scales.write(first * 4, &scales)?;
            from = end;
        }
        for (place, id) in places.iter().zip(part.ids) {
            self.ids[*place as usize] = id.into();
            self.metadata[*place as usize] = None;
        }
        for (place, metadata) in places.iter().zip(part.metadata) {
            self.metadata[*place as usize] = metadata.map(Box::new);
        }
        Ok(())
    }
}

/// Room for so many rows, and for as many again: a collection that grows does not move each time.
fn roomy(count: usize) -> usize {
    count.max(ROOM).next_power_of_two()
}

fn bytes(shape: Shape, room: usize) -> u64 {
    (room * (shape.stride() + 4)) as u64
}

/// The type of a tensor with components of this kind.
fn dtype(component: Component) -> DType {
    match component {
        Component::F32 => DType::Fp32,
        Component::F16 => DType::Fp16,
        Component::I8 => DType::Int8,
    }
}

fn odd(what: &str) -> Error {
    Error::internal(format!("what `{OWNER}` gave of a collection {what}"))
}

/// Tenant and name.
type Key = (String, String);

/// All copies.
pub struct Copies {
    driver: Arc<dyn Driver>,
    /// One program, in a context of its own, for each kind of component that is in use.
    gpus: HashMap<Component, Arc<dyn Gpu>>,
    memory: u64,
    held: HashMap<Key, Held>,
    clock: u64,
}

impl Copies {
    /// # Errors
    /// When the GPU cannot be used.
    pub fn new(driver: Arc<dyn Driver>, memory: u64) -> Result<Self> {
        let mut copies = Self { driver, gpus: HashMap::new(), memory, held: HashMap::new(), clock: 0 };
        // The usual one now: whether there is a GPU that works is told to whoever opens the model.
        copies.gpu(Component::F32)?;
        Ok(copies)
    }

    fn gpu(&mut self, component: Component) -> Result<Arc<dyn Gpu>> {
        if let Some(gpu) = self.gpus.get(&component) {
            return Ok(gpu.clone());
        }
        let (bits, ptx) = match component {
            Component::F32 => (32, include_str!("../../kernels/vector-search-fp32.ptx")),
            Component::F16 => (16, include_str!("../../kernels/vector-search-fp16.ptx")),
            Component::I8 => (8, include_str!("../../kernels/vector-search-int8.ptx")),
        };
        let gpu = self.driver.load(&Program {
            source: include_str!("../../kernels/vector-search.cu").to_owned(),
            name: "vector-search.cu".to_owned(),
            defines: [("ROW".to_owned(), bits)].into(),
            entries: ["scan", "hide", "best", "merge", "gather"].map(str::to_owned).into(),
            ptx: Some(ptx.to_owned()),
        })?;
        Ok(self.gpus.entry(component).or_insert(gpu).clone())
    }

    /// The caller's collection, as it is now. `None` when it changes faster than it can be read.
    ///
    /// # Errors
    /// What the owner says, or the GPU.
    pub fn follow(&mut self, request: &Request, name: &str) -> Result<Option<&Held>> {
        let key = (request.tenant().to_owned(), name.to_owned());
        // Half of what is new is worse than nothing: a copy is back in its place when all is well.
        let mut copy = self.held.remove(&key);
        let mut is_settled = false;
        for _ in 0..ROUNDS {
            is_settled = self.read(request, name, &mut copy)?;
            if is_settled {
                break;
            }
        }
        let Some(mut copy) = copy else { return Ok(None) };
        self.clock += 1;
        copy.used = self.clock;
        let copy = self.held.entry(key).insert_entry(copy).into_mut();
        Ok(is_settled.then_some(copy))
    }

    /// Reads what is new once; says whether it came in one piece, and so is all of it.
    fn read(&mut self, request: &Request, name: &str, copy: &mut Option<Held>) -> Result<bool> {
        let since = copy.as_ref().and_then(|copy| copy.version.clone());
        let (mut first, mut version) = (0, None);
        loop {
            let read = Read { collection: name.to_owned(), since: since.clone(), first, ..Read::default() };
            let answer = request.call(CAPABILITY).model(OWNER).params(&Params::Read(read))?.wait()?;
            let part = answer.chunks::<Chunk>()?.into_iter().find_map(|chunk| chunk.part);
            let part = part.ok_or_else(|| odd("is nothing"))?;
            let shape = Shape::of(&part.collection);
            if part.whole && version.is_none() {
                *copy = None;
            }
            let (next, now) = (part.next, part.version.clone());
            if copy.as_ref().is_some_and(|held| held.shape != shape) {
                // It was dropped and made anew meanwhile.
                *copy = None;
                return Ok(false);
            }
            let held = match copy {
                Some(held) => held,
                None => copy.insert(self.begin(shape)?),
            };
            self.make_room(held, part.collection.count as usize)?;
            let (places, vectors) = tensors(&answer, held.shape)?;
            held.take(part, &places, vectors)?;
            let is_first = version.is_none();
            let version = version.get_or_insert(now);
            match next {
                Some(next) => first = next,
                None => {
                    held.version = Some(version.clone());
                    return Ok(is_first);
                }
            }
        }
    }

    fn begin(&mut self, shape: Shape) -> Result<Held> {
        let gpu = self.gpu(shape.dtype)?;
        self.let_go(bytes(shape, ROOM))?;
        Held::new(gpu, shape)
    }

    /// Sees to it that a copy may grow to so many rows.
    fn make_room(&mut self, copy: &Held, count: usize) -> Result<()> {
        if copy.room < count {
            // Both are there while one is copied into the other.
            self.let_go(copy.bytes() + bytes(copy.shape, roomy(count)))?;
        }
        Ok(())
    }

    /// Lets copies go, least recently used first, until so many bytes are free.
    fn let_go(&mut self, needs: u64) -> Result<()> {
        if self.memory < needs {
            let message = format!(
                "the copy of the collection needs {needs} bytes on the GPU, and all may take {}; ask `{OWNER}`, or raise \
                 the plugin's setting `memory`",
                self.memory
            );
            return Err(Error::new(Code::ResourceExhausted, message).with_reason("vector_memory"));
        }
        while self.memory < self.held.values().map(Held::bytes).sum::<u64>() + needs {
            let oldest = self.held.iter().min_by_key(|(_, copy)| copy.used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.held.remove(&oldest);
        }
        Ok(())
    }
}

/// Which rows came, and what is in them.
fn tensors(answer: &Answer, shape: Shape) -> Result<(Vec<u32>, &[u8])> {
    if answer.tensors.is_empty() {
        return Ok((Vec::new(), &[]));
    }
    let vectors = answer.tensor(VECTORS)?;
    if vectors.dtype() != dtype(shape.dtype) {
        return Err(odd("is of another type"));
    }
    Ok((answer.tensor(ROWS)?.elements::<u32>()?.into_owned(), vectors.bytes()))
}
