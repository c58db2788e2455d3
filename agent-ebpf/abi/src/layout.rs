//! The macro that every shared struct is declared with.

/// Reads one little-endian field from the front of a slice.
pub(crate) trait Field: Sized {
    /// The value and what follows it; `None` when the bytes end early.
    fn take(bytes: &[u8]) -> Option<(Self, &[u8])>;
    /// Writes it to a slice of exactly its size.
    fn put(&self, out: &mut [u8]);
}

macro_rules! integer_field {
    ($($int:ty),*) => {$(
        impl Field for $int {
            fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
                let (head, rest) = bytes.split_first_chunk()?;
                Some((Self::from_le_bytes(*head), rest))
            }
            fn put(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

integer_field!(u16, u32, u64);

impl<const N: usize> Field for [u8; N] {
    fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk()?;
        Some((*head, rest))
    }
    fn put(&self, out: &mut [u8]) {
        out.copy_from_slice(self);
    }
}

impl<const N: usize> Field for [u64; N] {
    fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (mut words, mut rest) = ([0; N], bytes);
        for word in &mut words {
            (*word, rest) = u64::take(rest)?;
        }
        Some((words, rest))
    }
    fn put(&self, out: &mut [u8]) {
        for (word, place) in self.iter().zip(out.chunks_exact_mut(8)) {
            word.put(place);
        }
    }
}

/// Declares a `repr(C)` struct of little-endian fields, with its size stated, checked, and free of padding.
macro_rules! shared {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $($(#[$field_meta:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $name {
            /// Size in bytes.
            pub const SIZE: usize = $size;

            /// Reads the struct from the front of `bytes`; `None` when they end early.
            pub fn parse(bytes: &[u8]) -> Option<Self> {
                <Self as $crate::layout::Field>::take(bytes).map(|(value, _)| value)
            }

            /// The bytes that [`Self::parse`] reads.
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut out = [0; $size];
                $crate::layout::Field::put(self, &mut out);
                out
            }
        }

        impl $crate::layout::Field for $name {
            fn take(bytes: &[u8]) -> Option<(Self, &[u8])> {
                $(let ($field, bytes) = <$type as $crate::layout::Field>::take(bytes)?;)*
                Some((Self { $($field,)* }, bytes))
            }
            fn put(&self, out: &mut [u8]) {
                let rest = out;
                $(
                    let (head, rest) = rest.split_at_mut(core::mem::size_of::<$type>());
                    $crate::layout::Field::put(&self.$field, head);
                )*
                debug_assert!(rest.is_empty());
            }
        }

        const _: () = {
            assert!(core::mem::size_of::<$name>() == $size);
            assert!(core::mem::size_of::<$name>() == 0 $(+ core::mem::size_of::<$type>())*, "padding");
            assert!(core::mem::align_of::<$name>() <= 8, "rings align records to eight bytes");
        };
    };
}

pub(crate) use shared;
