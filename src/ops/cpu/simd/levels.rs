//! Generic kernels, made for every instruction set.

/// Runs `$body` with a constant `$m` = `$n`, and moves `$from` on by it: one arm of a loop over pieces whose
/// sizes are constants.
macro_rules! step {
    ($from:ident, $m:ident = $n:literal, $body:block) => {{
        const $m: usize = $n;
        $body
        $from += $n;
    }};
}
pub(crate) use step;

/// Instantiates generic kernels for every [`Level`](super::level::Level):
/// `multiversion! { pub(crate) unsafe fn name = kernel(a: A, b: B); }` makes
/// `name(level, a, b)` from `kernel::<S: Simd>(a, b)`. With `with native bf16`, the level that has it gets a
/// version of its own; other kernels are the same there as for [`Avx512`], and are not compiled twice.
macro_rules! multiversion {
    (@native [native] $kernel:ident($($a:ident : $t:ty),*) $(-> $ret:ident)?) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
        unsafe fn native($($a: $t),*) $(-> $ret)? {
            // SAFETY: this function has the type's features; the rest is the caller's promise.
            unsafe { $kernel::<$crate::ops::cpu::simd::Avx512Bf16>($($a),*) }
        }
    };
    (@native [] $kernel:ident($($a:ident : $t:ty),*) $(-> $ret:ident)?) => {
        #[cfg(target_arch = "x86_64")]
        use avx512 as native;
    };
    ($($(#[$m:meta])* $vis:vis unsafe fn $name:ident = $kernel:ident($($a:ident : $t:ty),* $(,)?)
        $(-> $ret:ident)? $(with $native:ident bf16)?;)*) => {$(
        $(#[$m])*
        #[doc = "\n\n# Safety\nThe CPU has `level`'s features; pointers as the generic kernel demands."]
        $vis unsafe fn $name(level: $crate::ops::cpu::level::Level, $($a: $t),*) $(-> $ret)? {
            use $crate::ops::cpu::level::Level;
            $crate::ops::cpu::simd::multiversion!(@native [$($native)?] $kernel($($a: $t),*) $(-> $ret)?);
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512($($a: $t),*) $(-> $ret)? {
                // SAFETY: this function has the type's features; the rest is the caller's promise.
                unsafe { $kernel::<$crate::ops::cpu::simd::Avx512>($($a),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($a: $t),*) $(-> $ret)? {
                // SAFETY: this function has the type's features; the rest is the caller's promise.
                unsafe { $kernel::<$crate::ops::cpu::simd::Avx2>($($a),*) }
            }
            match level {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the level, or the caller could not name it.
                Level::Avx512Bf16 => unsafe { native($($a),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the level, or the caller could not name it.
                Level::Avx512 => unsafe { avx512($($a),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the level, or the caller could not name it.
                Level::Avx2 => unsafe { avx2($($a),*) },
                // SAFETY: needs no features; the rest is the caller's promise.
                _ => unsafe { $kernel::<$crate::ops::cpu::simd::Scalar>($($a),*) },
            }
        }
    )*};
}
pub(crate) use multiversion;
