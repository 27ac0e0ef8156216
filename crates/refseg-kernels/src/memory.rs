//! Buffers that start where a cache line starts.

use std::{
    marker::PhantomData,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
};

use rayon::prelude::*;

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers of which every pattern of bits is one.
///
/// # Safety
/// The type has no padding, no invalid bit patterns, and needs no larger alignment than 64.
pub(crate) unsafe trait Number: Copy {}

// SAFETY: whole numbers and floats have neither padding nor invalid patterns.
unsafe impl Number for i8 {}
// SAFETY: as above.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for u16 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: as above.
unsafe impl Number for f32 {}

/// A buffer of numbers, aligned to cache lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    number: PhantomData<T>,
}

impl<T: Number> Aligned<T> {
    /// `len` numbers in parts of `part`, each written by one thread of the pool, which so is the first to touch it; and
    /// what the parts give, in their order.
    ///
    /// # Safety
    /// `write` writes all of the part that it is given.
    pub(crate) unsafe fn in_parts<R: Send>(
        len: usize,
        part: usize,
        write: impl Fn(usize, &mut [MaybeUninit<T>]) -> R + Sync,
    ) -> (Self, Vec<R>)
    where
        T: Send,
    {
        let count = (len * size_of::<T>()).div_ceil(64);
        let mut lines = Vec::<Line>::with_capacity(count);
        let room = count * 64 / size_of::<T>();
        // SAFETY: there is room for as many numbers, they may be wherever a line may, and need not be initialised.
        let memory = unsafe {
            std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<MaybeUninit<T>>(), room)
        };
        let (numbers, rest) = memory.split_at_mut(len);
        rest.fill(MaybeUninit::zeroed());
        let parts = numbers.par_chunks_mut(part).enumerate();
        let results = parts.map(|(index, part)| write(index, part)).collect();
        // SAFETY: the parts have been written, by the caller's word, and what is behind the last one is zeros.
        unsafe { lines.set_len(count) };
        let new = Self {
            lines,
            len,
            number: PhantomData,
        };
        (new, results)
    }

    /// Makes it `len` numbers long. What was there stays in part; what it holds then is for the caller to write.
    pub(crate) fn resize(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.len = len;
    }
}

impl<T: Number> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `resize` or `in_parts` has made the lines hold `len` numbers at least; they are initialised, and a `Number` is valid
        // whatever its bits and aligned where a line is.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and the lines are borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl Aligned<u32> {
    /// The same memory as smaller numbers.
    pub(crate) fn cast<T: Number>(self) -> Aligned<T> {
        Aligned {
            lines: self.lines,
            len: self.len * size_of::<u32>() / size_of::<T>(),
            number: PhantomData,
        }
    }
}

/// The same memory as bytes.
pub(crate) fn bytes<T: Number>(numbers: &[T]) -> &[u8] {
    // SAFETY: it is the same memory, and numbers have no padding.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}
