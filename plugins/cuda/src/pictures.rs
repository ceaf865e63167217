//! `image.prepare` on a GPU: pixels go there once, and what a network takes comes back.

use crate::gpu::Argument::Number;
use crate::gpu::{Driver, Gpu, Memory, Outside, Program, Size};
use backplane_plugin::payload::image_prepare::{Channels, Filter, Layout, PIXELS, Params, Region};
use backplane_plugin::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// Name of the model.
pub const MODEL: &str = "pictures-cuda";

/// No network takes a larger picture.
const MAX_SIDE: u32 = 4096;
/// Pictures of a request.
const MAX_PICTURES: usize = 256;
/// Bytes of a result.
const MAX_BYTES: u64 = 1 << 30;
/// As `pictures.cu` is launched.
const BLOCK: [u32; 3] = [32, 8, 1];

/// The claim where there is a GPU.
pub fn bid() -> Bid {
    Bid { valid_ms: 1_000, text: "on a GPU".to_owned(), ..Bid::default() }
}

/// The opened model.
pub struct PictureModel {
    driver: Arc<dyn Driver>,
}

impl PictureModel {
    /// # Errors
    /// That there is no GPU, or a parameter is given.
    pub fn open(driver: Arc<dyn Driver>, model: &ModelSpec) -> Result<Self> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parameters {}
        let Parameters {} = model.parameters()?;
        driver.check(true).map_err(|(_, error)| error)?;
        Ok(Self { driver })
    }
}

impl Model for PictureModel {
    fn describe(&self) -> Description {
        Description { platform: Some(crate::FORMAT.to_owned()), ..Description::default() }
    }

    fn instance(&self, _seat: &Seat) -> Result<Box<dyn Instance>> {
        let gpu = self.driver.load(&Program {
            source: include_str!("../kernels/pictures.cu").to_owned(),
            name: "pictures.cu".to_owned(),
            defines: [].into(),
            entries: ["prepare".to_owned()].into(),
            ptx: Some(include_str!("../kernels/pictures.ptx").to_owned()),
        })?;
        Ok(each(move |request| {
            request.push(&serve(&gpu, request)?)?;
            Ok(Done::new())
        }))
    }
}

fn serve(gpu: &Arc<dyn Gpu>, request: &Request) -> Result<Chunk> {
    let params: Params = request.params()?;
    let pictures = request.tensors()?;
    check(&params, &pictures)?;
    if request.is_cancelled() {
        return Err(Error::cancelled());
    }
    if request.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(Error::new(
            Code::DeadlineExceeded,
            "the deadline passed before the pictures were prepared",
        ));
    }
    let Params { width, height, layout, .. } = params;
    let mut jobs = Vec::new();
    let pixels = Memory::alloc(gpu, pictures.iter().map(|picture| picture.bytes().len()).sum())?;
    let mut offset = 0;
    for (picture, region) in pictures.iter().zip(&params.regions) {
        pixels.write(offset, picture.bytes())?;
        jobs.extend(job(offset, picture.shape(), region));
        offset += picture.bytes().len();
    }
    let (jobs, numbers) = (Memory::of(gpu, &jobs)?, Memory::of(gpu, &numbers(&params))?);
    let count = pictures.len();
    let (bytes, stays) = (count * 3 * width as usize * height as usize * 4, request.keeps_on_device());
    let out = if stays { Memory::lasting(gpu, bytes)? } else { Memory::alloc(gpu, bytes)? };
    let arguments = [
        pixels.argument(),
        jobs.argument(),
        numbers.argument(),
        out.argument(),
        Number(width.into()),
        Number(height.into()),
        Number(i64::from(params.filter == Filter::Bicubic)),
        Number(i64::from(layout == Layout::Nhwc)),
    ];
    let grid = [width.div_ceil(BLOCK[0]), height.div_ceil(BLOCK[1]), count as u32];
    gpu.launch("prepare", Size { grid, block: BLOCK, shared: 0 }, &arguments)?;
    let (count, width, height) = (count as i64, i64::from(width), i64::from(height));
    let shape = match layout {
        Layout::Nchw => [count, 3, height, width],
        Layout::Nhwc => [count, height, width, 3],
    };
    let made = match stays {
        true => Tensor::on_device(PIXELS, DType::Fp32, &shape, Outside::of(out)?)?,
        false => Tensor::raw(PIXELS, DType::Fp32, &shape, out.read()?)?,
    };
    Ok(Chunk::new().tensor(made))
}

/// What would be read or written elsewhere is refused before anything is sent.
fn check(params: &Params, pictures: &[TensorView<'_>]) -> Result<()> {
    let wrong = |what: String, param: &str| Err(Error::invalid(what).with_param(param));
    refuse_unknown::<Params>(&params.extra)?;
    for (name, side) in [("width", params.width), ("height", params.height)] {
        if !(1..=MAX_SIDE).contains(&side) {
            return wrong(format!("`{name}` is {side}, and lies between 1 and {MAX_SIDE}"), name);
        }
    }
    if !(1..=MAX_PICTURES).contains(&pictures.len()) || pictures.len() != params.regions.len() {
        let (pictures, regions) = (pictures.len(), params.regions.len());
        let what = format!(
            "there are {pictures} pictures and {regions} `regions`, and must be as many: 1 to {MAX_PICTURES}"
        );
        return wrong(what, "regions");
    }
    let bytes = u64::from(params.width) * u64::from(params.height) * 12 * pictures.len() as u64;
    if MAX_BYTES < bytes {
        let what =
            format!("the result has {bytes} bytes, and may have {MAX_BYTES}; send fewer pictures at once");
        return wrong(what, "regions");
    }
    if params.std.contains(&0.0) {
        return wrong("`std` has a 0, and numbers are divided by it".to_owned(), "std");
    }
    for (number, (picture, region)) in pictures.iter().zip(&params.regions).enumerate() {
        let [height, width, 3] = *picture.shape() else {
            let (name, shape) = (picture.name(), picture.shape());
            return wrong(format!("tensor `{name}` is {shape:?}, and must be [height, width, 3]"), name);
        };
        if picture.dtype() != DType::Uint8
            || i32::try_from(width.max(height)).is_err()
            || width.min(height) < 1
        {
            let name = picture.name();
            return wrong(format!("tensor `{name}` is no picture: it must be UINT8, and not empty"), name);
        }
        let within =
            |at: f32, length: f32, side: i64| 0.0 <= at && 0.0 < length && at + length <= side as f32;
        let [left, top, across, down] = region.from;
        if !within(left, across, width) || !within(top, down, height) {
            let what =
                format!("`regions[{number}].from` is {:?}, of a picture of {width}x{height}", region.from);
            return wrong(what, "regions");
        }
        let [left, top, across, down] = region.to.map(u64::from);
        let inside = |at: u64, length: u64, side: u32| 1 <= length && at + length <= u64::from(side);
        if !inside(left, across, params.width) || !inside(top, down, params.height) {
            let (width, height) = (params.width, params.height);
            let what = format!("`regions[{number}].to` is {:?}, of a result of {width}x{height}", region.to);
            return wrong(what, "regions");
        }
    }
    Ok(())
}

/// `struct Job` of `pictures.cu`.
fn job(offset: usize, shape: &[i64], region: &Region) -> Vec<u8> {
    let mut job = (offset as i64).to_le_bytes().to_vec();
    job.extend([shape[1], shape[0]].iter().flat_map(|side| (*side as i32).to_le_bytes()));
    job.extend(region.from.iter().flat_map(|number| number.to_le_bytes()));
    job.extend(region.to.iter().flat_map(|number| number.to_le_bytes()));
    job
}

/// `struct Numbers` of `pictures.cu`.
fn numbers(params: &Params) -> Vec<u8> {
    let places = match params.channels {
        Channels::Rgb => [0, 1, 2_i32],
        Channels::Bgr => [2, 1, 0],
    };
    let floats = [&[params.scale][..], &params.mean, &params.std].concat();
    let mut numbers: Vec<u8> = floats.iter().flat_map(|number| number.to_le_bytes()).collect();
    numbers.extend(places.iter().chain(&[i32::from(params.fill)]).flat_map(|number| number.to_le_bytes()));
    numbers
}
