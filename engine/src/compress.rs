//! The only user of zstd: contexts that are kept and lent out, a prefix for each frame, and strict decompression.
//!
//! A context and its scratch buffers take 1 to 3 MiB, by its setting, and are needed only while a frame is compressed.
//! So they are shared by all encoders of the process: as many exist as threads compress at the same moment, and a few
//! of each setting are kept. Work that comes rarely and compresses much, as a base does, has its own and drops it.
#![warn(clippy::indexing_slicing)]

use std::sync::{Mutex, PoisonError};

use zstd_safe::{CCtx, CParameter, DCtx, DParameter, ResetDirective};

/// Idle compressors of each setting, and idle decompressors, kept for the next caller.
const KEPT: usize = 4;
/// A compressor whose scratch buffers have grown beyond what frames need is not kept.
const KEPT_BYTES: usize = 4 << 20;

/// zstd's words about what went wrong.
pub(crate) type Failure = &'static str;

/// What is compressed, and with it the parameters of zstd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Up to 256 KiB behind a prefix of up to as much, fast. The hash table must cover both: with the smaller one
    /// that level 1 takes by default the prefix is mostly forgotten (1 % of the log becomes 34 %).
    Hot,
    /// The same, smaller and slower.
    Thorough,
    /// Up to 1 MiB behind a prefix of up to as much: mostly new pages.
    Wide,
    /// Anything without a prefix.
    Plain,
}

impl Setting {
    /// The idle compressors of this setting.
    fn idle(self) -> &'static Mutex<Vec<Compressor>> {
        static HOT: Mutex<Vec<Compressor>> = Mutex::new(Vec::new());
        static THOROUGH: Mutex<Vec<Compressor>> = Mutex::new(Vec::new());
        static WIDE: Mutex<Vec<Compressor>> = Mutex::new(Vec::new());
        static PLAIN: Mutex<Vec<Compressor>> = Mutex::new(Vec::new());
        match self {
            Self::Hot => &HOT,
            Self::Thorough => &THOROUGH,
            Self::Wide => &WIDE,
            Self::Plain => &PLAIN,
        }
    }

    fn parameters(self) -> &'static [CParameter] {
        use CParameter::{CompressionLevel, HashLog, WindowLog};
        match self {
            Self::Hot => &[CompressionLevel(1), WindowLog(19), HashLog(17)],
            Self::Thorough => &[CompressionLevel(3), WindowLog(19)],
            Self::Wide => &[CompressionLevel(3), WindowLog(21)],
            Self::Plain => &[CompressionLevel(3)],
        }
    }
}

/// Compresses with one setting, and checks what it compressed.
pub(crate) struct Compressor {
    setting: Setting,
    context: Option<CCtx<'static>>,
    checker: Decompressor,
    compressed: Vec<u8>,
    checked: Vec<u8>,
}

impl Compressor {
    pub(crate) fn new(setting: Setting) -> Self {
        let (compressed, checked) = (Vec::new(), Vec::new());
        Self { setting, context: None, checker: Decompressor::default(), compressed, checked }
    }

    /// Lends a compressor to `work`.
    pub(crate) fn with<T>(setting: Setting, work: impl FnOnce(&mut Self) -> T) -> T {
        let fits = |lent: &Self| lent.compressed.capacity() + lent.checked.capacity() <= KEPT_BYTES;
        lend_from(setting.idle(), || Self::new(setting), fits, work)
    }

    /// `bytes` as one zstd frame behind `prefix`, decompressed again and found equal; `None` when that saves less than
    /// 3 %.
    pub(crate) fn compress(&mut self, prefix: &[u8], bytes: &[u8]) -> Result<Option<&[u8]>, Failure> {
        let bound = zstd_safe::compress_bound(bytes.len());
        if self.compressed.len() < bound {
            self.compressed.resize(bound, 0);
        }
        // A context that failed is not put back: it may still refer to the prefix.
        let setting = self.setting;
        let mut context = self.context.take().map_or_else(|| compression_context(setting), Ok)?;
        if !prefix.is_empty() {
            context.ref_prefix(lend(prefix)).map_err(zstd_safe::get_error_name)?;
        }
        let len =
            context.compress2(self.compressed.as_mut_slice(), bytes).map_err(zstd_safe::get_error_name)?;
        context.reset(ResetDirective::SessionOnly).map_err(zstd_safe::get_error_name)?;
        self.context = Some(context);
        if len >= bytes.len() - bytes.len() / 32 {
            return Ok(None);
        }
        #[cfg(test)]
        spoiled::spoil(self.compressed.get_mut(..len).unwrap_or_default());
        let compressed = self.compressed.get(..len).unwrap_or_default();
        self.checked.resize(bytes.len(), 0);
        self.checker.decompress(prefix, compressed, &mut self.checked)?;
        if self.checked != bytes {
            return Err("what was compressed does not decompress to the same bytes");
        }
        Ok(Some(compressed))
    }
}

/// A compressor that makes something wrong, for the tests of what checks it.
#[cfg(test)]
pub(crate) mod spoiled {
    use std::cell::Cell;

    thread_local! { static AT: Cell<Option<usize>> = const { Cell::new(None) } }

    /// What `work` compresses on this thread has a flipped bit so far from its end.
    pub(crate) fn from_the_end<T>(at: usize, work: impl FnOnce() -> T) -> T {
        AT.set(Some(at));
        let done = work();
        AT.set(None);
        done
    }

    pub(super) fn spoil(compressed: &mut [u8]) {
        let at = AT.get().and_then(|at| compressed.len().checked_sub(at));
        if let Some(byte) = at.and_then(|at| compressed.get_mut(at)) {
            *byte ^= 1;
        }
    }
}

fn compression_context(setting: Setting) -> Result<CCtx<'static>, Failure> {
    let mut context = CCtx::try_create().ok_or("no memory for a zstd context")?;
    for parameter in setting.parameters() {
        context.set_parameter(*parameter).map_err(zstd_safe::get_error_name)?;
    }
    Ok(context)
}

/// Decompresses single frames of known size.
#[derive(Default)]
pub(crate) struct Decompressor(Option<DCtx<'static>>);

impl Decompressor {
    /// Lends a decompressor to `work`.
    pub(crate) fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        static IDLE: Mutex<Vec<Decompressor>> = Mutex::new(Vec::new());
        lend_from(&IDLE, Self::default, |_| true, work)
    }

    /// Decompresses one zstd frame behind `prefix` that fills `out` exactly. Takes no memory by the frame's word: the
    /// size it declares must be the one expected, and `out` is its window.
    pub(crate) fn decompress(&mut self, prefix: &[u8], frame: &[u8], out: &mut [u8]) -> Result<(), Failure> {
        let declared = zstd_safe::get_frame_content_size(frame).map_err(|_| "not a zstd frame")?;
        if declared != Some(out.len() as u64) {
            return Err("the zstd frame is of another size than its table says");
        }
        if zstd_safe::find_frame_compressed_size(frame).map_err(zstd_safe::get_error_name)? != frame.len() {
            return Err("bytes follow the zstd frame");
        }
        let mut context = self.0.take().map_or_else(decompression_context, Ok)?;
        if !prefix.is_empty() {
            context.ref_prefix(lend(prefix)).map_err(zstd_safe::get_error_name)?;
        }
        let size = context.decompress(out, frame).map_err(zstd_safe::get_error_name)?;
        context.reset(ResetDirective::SessionOnly).map_err(zstd_safe::get_error_name)?;
        self.0 = Some(context);
        if size == out.len() { Ok(()) } else { Err("the zstd frame is shorter than it says") }
    }
}

fn decompression_context() -> Result<DCtx<'static>, Failure> {
    let mut context = DCtx::try_create().ok_or("no memory for a zstd context")?;
    context.set_parameter(DParameter::WindowLogMax(22)).map_err(zstd_safe::get_error_name)?;
    Ok(context)
}

/// Lends one of the idle ones, or a new one, and keeps it for the next caller if it `fits`. Making a context costs more
/// than a small frame does.
fn lend_from<C, T>(
    idle: &Mutex<Vec<C>>,
    new: impl FnOnce() -> C,
    fits: impl FnOnce(&C) -> bool,
    work: impl FnOnce(&mut C) -> T,
) -> T {
    let kept = || idle.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = kept().pop();
    let mut lent = taken.unwrap_or_else(new);
    let result = work(&mut lent);
    let mut kept = kept();
    if kept.len() < KEPT && fits(&lent) {
        kept.push(lent);
    }
    result
}

/// The prefix for the one frame that follows, in the lifetime the kept contexts ask for.
#[expect(
    unsafe_code,
    reason = "zstd-safe ties a prefix to the whole life of a context, so none could be used twice"
)]
fn lend(prefix: &[u8]) -> &'static [u8] {
    // SAFETY: the result goes nowhere but into `ref_prefix` above. zstd reads a prefix only during the next call that
    // (de)compresses a frame ("only valid once", zstd.h), which both callers make before the borrow ends; after an
    // error in between, the context is dropped with the call.
    unsafe { std::mem::transmute::<&[u8], &'static [u8]>(prefix) }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn a_frame_needs_the_prefix_it_was_made_with() {
        let prefix: Vec<u8> = (0..8192_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
        let bytes = prefix.clone();
        for setting in [Setting::Hot, Setting::Thorough, Setting::Wide] {
            let frame = Compressor::with(setting, |c| c.compress(&prefix, &bytes).unwrap().unwrap().to_vec());
            assert!(frame.len() < 64, "{setting:?}: {}", frame.len());
            let mut out = vec![0; bytes.len()];
            let mut decompressor = Decompressor::default();
            decompressor.decompress(&prefix, &frame, &mut out).unwrap();
            assert_eq!(out, bytes);
            let mut other = prefix.clone();
            other[0] ^= 1;
            let found = decompressor.decompress(&other, &frame, &mut out);
            assert!(found.is_err() || out != bytes);
            assert!(decompressor.decompress(&[], &frame, &mut out).is_err());
            decompressor.decompress(&prefix, &frame, &mut out).unwrap();
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn noise_and_nothing_are_not_worth_a_frame() {
        let noise: Vec<u8> = (0..1024_u64).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        assert!(Compressor::new(Setting::Hot).compress(&[], &noise).unwrap().is_none());
        assert!(Compressor::new(Setting::Plain).compress(&[], &[]).unwrap().is_none());
    }

    /// The frame carries no checksum of its own, so many a flipped bit decompresses to other bytes without an error:
    /// only the comparison notices those.
    #[test]
    fn what_was_compressed_wrongly_is_never_given_out() {
        let bytes: Vec<u8> = (0..4096_u32).flat_map(|n| (n * n % 251).to_le_bytes()).collect();
        let mut compressor = Compressor::new(Setting::Hot);
        let whole = compressor.compress(&[], &bytes).unwrap().unwrap().to_vec();
        let (mut silent, mut given_out) = (0, 0);
        for at in 1..=whole.len() {
            let mut wrong = whole.clone();
            wrong[whole.len() - at] ^= 1;
            let mut out = vec![0; bytes.len()];
            let read = Decompressor::default().decompress(&[], &wrong, &mut out);
            let differs = read.is_ok() && out != bytes;
            silent += u32::from(differs);
            let same = read.is_ok() && out == bytes;
            let made = spoiled::from_the_end(at, || {
                Compressor::new(Setting::Hot).compress(&[], &bytes).map(|made| made.is_some())
            });
            given_out += u32::from(made.is_ok() && !same);
        }
        assert!(silent > 0, "no flipped bit decompresses: the comparison is not tried by this");
        assert_eq!(given_out, 0);
    }

    #[test]
    fn a_frame_of_another_size_or_with_a_tail_is_refused() {
        let mut frame = Compressor::new(Setting::Plain).compress(&[], &[7; 999]).unwrap().unwrap().to_vec();
        let mut decompressor = Decompressor::default();
        for size in [0, 998, 1000] {
            assert!(decompressor.decompress(&[], &frame, &mut vec![0; size]).is_err());
        }
        decompressor.decompress(&[], &frame, &mut [0; 999]).unwrap();
        frame.push(0);
        assert!(decompressor.decompress(&[], &frame, &mut [0; 999]).is_err());
    }
}
