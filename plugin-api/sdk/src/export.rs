//! [`export_plugin!`](crate::export_plugin): makes a library out of a [`Plugin`](crate::Plugin).

/// Exports a plugin: the entry symbol, the manifest as an ELF note, and the `abi_stable` root module.
///
/// The second argument is the text of `plugin.toml`, a literal or `include_str!(..)`. The plugin's version is that of
/// its crate. Once per library.
///
/// ```
/// # use backplane_plugin::prelude::*;
/// # struct Silent;
/// # impl Plugin for Silent {
/// #     const ID: &'static str = "com.example.silent";
/// #     fn init(_: Host, _: &Value) -> Result<Self> { Ok(Silent) }
/// #     fn open(&self, _: &ModelSpec) -> Result<Box<dyn Model>> { Err(Error::not_found("nothing here")) }
/// # }
/// export_plugin!(Silent, "id = 'com.example.silent'\nversion = '1.0.0'\nabi = '1.0'");
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty, $manifest:expr) => {
        #[doc(hidden)]
        #[allow(unsafe_code, reason = "exported symbols and sections; the code behind them is the SDK's")]
        pub mod backplane_export {
            use super::*;
            use $crate::__private as sdk;

            /// The one symbol of the ABI.
            ///
            /// # Safety
            /// As `backplane.h` says.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn bp_entry_v1(
                host: *const sdk::bp_host,
                out: *mut *mut sdk::bp_plugin,
            ) -> sdk::bp_code {
                // SAFETY: the host's promise.
                unsafe { sdk::entry::<$plugin>(env!("CARGO_PKG_VERSION"), host, out) }
            }

            const MANIFEST: &str = $manifest;

            /// The manifest, to be read without running anything.
            #[used]
            #[unsafe(link_section = ".note.backplane")]
            static NOTE: sdk::Note<{ MANIFEST.len() }> = sdk::Note::new(sdk::NOTE_MANIFEST, MANIFEST);

            const BUILT: &str = sdk::built(cfg!(panic = "unwind"));

            /// What built it, as the compiler of the plugin knows it.
            #[used]
            #[unsafe(link_section = ".note.backplane.build")]
            static BUILD: sdk::Note<{ BUILT.len() }> = sdk::Note::new(sdk::NOTE_BUILD, BUILT);

            extern "C" fn erased(host: *const sdk::c_void, out: *mut *mut sdk::c_void) -> sdk::bp_code {
                // SAFETY: the same function with its tables erased.
                unsafe { bp_entry_v1(host.cast(), out.cast()) }
            }

            fn root_module() -> sdk::RootRef {
                sdk::PrefixTypeTrait::leak_into_prefix(sdk::Root { entry: erased })
            }

            extern "C" fn load_root() -> sdk::RootModuleResult {
                sdk::call_root_module_loader(root_module)
            }

            /// What `#[export_root_module]` of abi_stable expands to, written out because the attribute names the
            /// crate by a path that only direct dependants have.
            #[unsafe(no_mangle)]
            pub static _1as_0lib_1header_0root_bmodule_bloader: sdk::LibHeader = {
                // SAFETY: load_root returns a module of this type.
                unsafe {
                    sdk::LibHeader::from_constructor::<sdk::RootRef>(load_root, sdk::CheckTypeLayout::Yes)
                }
            };
        }
    };
}
