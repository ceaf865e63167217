//! All `unsafe` of this plugin: NVRTC's functions, and the calls of `cudarc` that it leaves to the caller.

#![expect(unsafe_code, reason = "the boundary to NVRTC and to the driver")]

use cudarc::driver::sys::{
    CUcontext, CUevent_wait_flags, CUpointer_attribute, cuMemcpyPeerAsync, cuPointerGetAttribute,
};
use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtrMut, DriverError, LaunchConfig, PushKernelArg, result,
};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

/// Whether the driver's library, `libcuda`, can be loaded. `cudarc` panics where it cannot, so this comes first.
pub fn has_driver() -> bool {
    // SAFETY: loads a library of the system's driver by its name and closes it again; its initialisers are the driver's.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Memory of the device, as it was left there.
///
/// # Errors
/// As the driver says.
pub fn alloc(stream: &Arc<CudaStream>, bytes: usize) -> Result<CudaSlice<u8>, DriverError> {
    // SAFETY: every pattern of bytes is a value; what a kernel leaves out is the card's fault, and seen by its checks.
    unsafe { stream.alloc::<u8>(bytes) }
}

/// Memory of the device that belongs to its context, as that of the driver's pools does not: others can be told of it.
/// Given back by [`free_lasting`].
///
/// # Errors
/// As the driver says.
pub fn alloc_lasting(stream: &Arc<CudaStream>, bytes: usize) -> Result<CudaSlice<u8>, DriverError> {
    stream.context().bind_to_thread()?;
    // SAFETY: as `alloc`; the memory is new, of the context that was bound, and has as many bytes.
    unsafe { Ok(stream.upgrade_device_ptr(result::malloc_sync(bytes)?, bytes)) }
}

/// Gives memory of [`alloc_lasting`] back, once all that was asked of it is done.
///
/// # Errors
/// As the driver says.
pub fn free_lasting(slice: CudaSlice<u8>) -> Result<(), DriverError> {
    let context = slice.context().clone();
    let address = slice.leak();
    context.bind_to_thread()?;
    // SAFETY: from `malloc_sync` in this context, and freed once: the slice is gone.
    unsafe { result::free_sync(address) }
}

/// Memory of somebody else's in the context of this stream, to be read; not to be dropped, but leaked.
pub fn foreign(stream: &Arc<CudaStream>, address: u64, bytes: usize) -> CudaSlice<u8> {
    // SAFETY: whoever says so keeps the memory alive for as long as this is used, and gives it back itself.
    unsafe { stream.upgrade_device_ptr(address, bytes) }
}

/// The context that memory was allocated in; null where it belongs to none.
///
/// # Errors
/// As the driver says.
pub fn context_of(stream: &CudaStream, address: u64) -> Result<CUcontext, DriverError> {
    stream.context().bind_to_thread()?;
    let mut context: CUcontext = ptr::null_mut();
    let attribute = CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT;
    // SAFETY: a place for what this attribute is, a context; an address that the driver does not know is an error.
    unsafe { cuPointerGetAttribute((&raw mut context).cast(), attribute, address) }.result()?;
    Ok(context)
}

/// Lets a stream wait for an event of somebody else's.
///
/// # Errors
/// As the driver says.
pub fn wait_for(stream: &CudaStream, event: u64) -> Result<(), DriverError> {
    stream.context().bind_to_thread()?;
    let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: the event is its owner's, who keeps it as long as the memory that it came with (backplane.h); it may be of
    // another context.
    unsafe { result::stream::wait_event(stream.cu_stream(), event as *mut _, flags) }
}

/// Copies from memory of another context, or of none, on the device.
///
/// # Errors
/// As the driver says.
pub fn copy_foreign(
    stream: &Arc<CudaStream>,
    context: CUcontext,
    address: u64,
    to: &mut CudaSlice<u8>,
) -> Result<(), DriverError> {
    let (bytes, own) = (to.len(), stream.context().cu_ctx());
    stream.context().bind_to_thread()?;
    let (to, _written) = to.device_ptr_mut(stream);
    // SAFETY: both sides hold as many bytes and live until the stream has copied them: whoever says so keeps the other one, and
    // the caller waits.
    unsafe {
        if context.is_null() {
            return result::memcpy_dtod_async(to, address, bytes, stream.cu_stream());
        }
        cuMemcpyPeerAsync(to, own, address, context, bytes, stream.cu_stream()).result()
    }
}

/// What a kernel is called with.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// Memory of the device.
    Memory(&'a CudaSlice<u8>),
    /// A `long long`.
    Number(i64),
}

/// Starts a kernel. It runs when this has returned.
///
/// # Errors
/// As the driver says.
pub fn launch(
    stream: &CudaStream,
    function: &CudaFunction,
    config: LaunchConfig,
    arguments: &[Argument<'_>],
) -> Result<(), DriverError> {
    let mut builder = stream.launch_builder(function);
    for argument in arguments {
        match argument {
            Argument::Memory(memory) => builder.arg(*memory),
            Argument::Number(number) => builder.arg(number),
        };
    }
    // SAFETY: the card says what the function takes, and its checks ran with it; a kernel that reads or writes elsewhere
    // can harm the memory of its own context on the device, and none of this process. Memory is given back in the order of
    // the stream, and so after the function has run.
    unsafe { builder.launch(config) }.map(drop)
}

/// NVRTC's result: 0 is well.
type Code = c_int;
/// A program of NVRTC's.
type Program = *mut c_void;

/// NVRTC, CUDA's compiler as a library. It needs no driver.
#[derive(Debug)]
pub struct Nvrtc {
    version: Symbol<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code>,
    error: Symbol<unsafe extern "C" fn(Code) -> *const c_char>,
    create: Symbol<
        unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Code,
    >,
    destroy: Symbol<unsafe extern "C" fn(*mut Program) -> Code>,
    compile: Symbol<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code>,
    log_size: Symbol<unsafe extern "C" fn(Program, *mut usize) -> Code>,
    log: Symbol<unsafe extern "C" fn(Program, *mut c_char) -> Code>,
    image_size: Symbol<unsafe extern "C" fn(Program, *mut usize) -> Code>,
    image: Symbol<unsafe extern "C" fn(Program, *mut c_char) -> Code>,
    ptx_size: Symbol<unsafe extern "C" fn(Program, *mut usize) -> Code>,
    ptx: Symbol<unsafe extern "C" fn(Program, *mut c_char) -> Code>,
    /// Behind the functions, so that it is dropped last. It is never unmapped all the same: see [`Nvrtc::load`].
    _library: Arc<Library>,
}

/// What a source is compiled to.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Code of one device.
    Machine,
    /// Text that a driver compiles, for a device and all later ones.
    Ptx,
}

/// Why a source was not compiled.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The compiler's log: file, line, what is wrong.
    Source(String),
    /// The compiler could not work.
    Compiler(String),
}

impl Nvrtc {
    /// Loads the library at `path`, or by that name from where the system looks.
    ///
    /// # Errors
    /// What the linker says, or which function it lacks.
    pub fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: a shared library that the operator installed or pulled by its hash; its initialisers are NVIDIA's.
        let library =
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| error.to_string())?;
        let library = Arc::new(library);
        // A library that started threads or has destructors is not unmapped.
        std::mem::forget(library.clone());
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of `nvrtc.h`, unchanged since CUDA 11.1.
                unsafe { library.get($name) }.map_err(|error| error.to_string())?
            };
        }
        Ok(Self {
            version: function!(b"nvrtcVersion\0"),
            error: function!(b"nvrtcGetErrorString\0"),
            create: function!(b"nvrtcCreateProgram\0"),
            destroy: function!(b"nvrtcDestroyProgram\0"),
            compile: function!(b"nvrtcCompileProgram\0"),
            log_size: function!(b"nvrtcGetProgramLogSize\0"),
            log: function!(b"nvrtcGetProgramLog\0"),
            image_size: function!(b"nvrtcGetCUBINSize\0"),
            image: function!(b"nvrtcGetCUBIN\0"),
            ptx_size: function!(b"nvrtcGetPTXSize\0"),
            ptx: function!(b"nvrtcGetPTX\0"),
            _library: library,
        })
    }

    /// Its version: major, minor.
    pub fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places to write to.
        unsafe { (self.version)(&raw mut major, &raw mut minor) };
        (major, minor)
    }

    /// What becomes of `source`, which errors call `name`.
    ///
    /// # Errors
    /// The compiler's log, or why there is none.
    pub fn compile(
        &self,
        source: &str,
        name: &str,
        options: &[String],
        form: Form,
    ) -> Result<Vec<u8>, Failure> {
        let text = |text: &str| {
            CString::new(text).map_err(|_| Failure::Source(format!("{name}: it holds a zero byte")))
        };
        let (source, name) = (text(source)?, text(name)?);
        let options = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = Handle { nvrtc: self, raw: ptr::null_mut() };
        // SAFETY: a place to write to, and texts that live until the call returns.
        let code = unsafe {
            (self.create)(&raw mut program.raw, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        };
        self.check(code)?;
        // SAFETY: a program that was made above, and as many options as are said.
        let code = unsafe { (self.compile)(program.raw, options.len() as c_int, options.as_ptr()) };
        /// `NVRTC_ERROR_COMPILATION`
        const COMPILATION: Code = 6;
        if code == COMPILATION {
            return Err(Failure::Source(program.log()?));
        }
        if let Err(Failure::Compiler(what)) = self.check(code) {
            // A wrong option, say: the log has more.
            let log = program.log().unwrap_or_default();
            return Err(Failure::Compiler(format!("{what} {log}").trim().to_owned()));
        }
        match form {
            Form::Machine => program.bytes(&self.image_size, &self.image),
            Form::Ptx => program.bytes(&self.ptx_size, &self.ptx),
        }
    }

    fn check(&self, code: Code) -> Result<(), Failure> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: gives a static text for every code.
        let text = unsafe { (self.error)(code) };
        let text = if text.is_null() {
            format!("code {code}")
        } else {
            // SAFETY: a text of NVRTC's that ends with a zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Failure::Compiler(text))
    }
}

/// A program that is destroyed in the end.
struct Handle<'a> {
    nvrtc: &'a Nvrtc,
    raw: Program,
}

impl Handle<'_> {
    fn log(&self) -> Result<String, Failure> {
        let mut log = self.bytes(&self.nvrtc.log_size, &self.nvrtc.log)?;
        while log.last() == Some(&0) {
            log.pop();
        }
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    fn bytes(
        &self,
        size: &Symbol<unsafe extern "C" fn(Program, *mut usize) -> Code>,
        copy: &Symbol<unsafe extern "C" fn(Program, *mut c_char) -> Code>,
    ) -> Result<Vec<u8>, Failure> {
        let mut length = 0;
        // SAFETY: a program that lives, and a place to write to.
        self.nvrtc.check(unsafe { size(self.raw, &raw mut length) })?;
        let mut bytes = vec![0_u8; length];
        // SAFETY: a program that lives, and as much memory as it just asked for.
        self.nvrtc.check(unsafe { copy(self.raw, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: a program that was made and not destroyed yet.
            unsafe { (self.nvrtc.destroy)(&raw mut self.raw) };
        }
    }
}
