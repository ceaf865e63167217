//! `bp.license/1`.
#![expect(unsafe_code, reason = "the plugin's end of the C ABI")]

use super::host::extension;
use crate::host::Host;
use crate::license::{License, Standing};
use backplane_abi::table::*;
use std::ffi::c_void;

/// The functions of `bp.license/1`, all of them there.
#[derive(Clone, Copy)]
pub struct LicenseTable {
    state: unsafe extern "C" fn(*const bp_host, *mut i32, *mut u64) -> bp_code,
    feature: unsafe extern "C" fn(*const bp_host, bp_str, bp_str, *mut i64) -> bp_code,
    bytes: [unsafe extern "C" fn(*const bp_host, *mut c_void, u64, *mut u64) -> bp_code; 2],
}

pub fn license(host: Host) -> Option<License> {
    let known = extension::<bp_license_1>(host, BP_EXT_LICENSE_1)?;
    let bytes = [known.envelope?, known.install_id?];
    Some(License { host, table: LicenseTable { state: known.state?, feature: known.feature?, bytes } })
}

pub fn license_state(license: &License) -> (Standing, u64) {
    let (mut state, mut revision) = (BP_LICENSE_UNKNOWN, 0);
    // SAFETY: a function of the host's, with places to write to.
    let code = unsafe { (license.table.state)(license.host.0, &raw mut state, &raw mut revision) };
    let standing = match (code, state) {
        (BP_OK, BP_LICENSE_OK) => Standing::Licensed,
        (BP_OK, BP_LICENSE_GRACE) => Standing::Grace,
        (BP_OK, BP_LICENSE_DENIED) => Standing::Denied,
        _ => Standing::Unknown,
    };
    (standing, revision)
}

pub fn license_feature(license: &License, tenant: &str, name: &str) -> Option<i64> {
    let mut value = 0;
    let (tenant, name) = (bp_str::new(tenant), bp_str::new(name));
    // SAFETY: a function of the host's, with texts that are valid until it returns and a place to write to.
    let code = unsafe { (license.table.feature)(license.host.0, tenant, name, &raw mut value) };
    (code == BP_OK).then_some(value)
}

pub fn license_bytes(license: &License, install_id: bool) -> Option<Vec<u8>> {
    /// More than a licence takes.
    const MOST: u64 = 1 << 20;
    let read = license.table.bytes[usize::from(install_id)];
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let mut len = 0;
        // SAFETY: a function of the host's, with as much room as is said and a place to write to.
        let code =
            unsafe { read(license.host.0, bytes.as_mut_ptr().cast(), bytes.len() as u64, &raw mut len) };
        match code {
            BP_OK => {
                bytes.truncate(len as usize);
                return Some(bytes);
            }
            // Another may take its place between two calls.
            BP_OUT_OF_RANGE if (bytes.len() as u64) < len && len <= MOST => bytes.resize(len as usize, 0),
            _ => return None,
        }
    }
}
