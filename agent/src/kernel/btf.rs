//! The running kernel's type information (BTF): where a member lies in a struct, and how large it is.
//!
//! Only what the offset table needs is understood, but everything is walked: a kind that is not known would derail the walk, so
//! it is an error. Nothing is indexed unchecked, and an answer is held against what surrounds it: a member must lie within its
//! struct, overlap no other member, and have a name of its own, and where several structs have one name they must agree. One damaged
//! number in a struct without holes is an error for that reason; in a struct with holes it can go unseen.
//!
//! Format: Documentation/bpf/btf.rst of the kernel. A header, a section of types numbered from 1, a section of strings. Types
//! are twelve bytes (name, info, size or type) and what their kind adds.

use std::{collections::HashMap, io, path::Path};

/// Where the kernel shows its own.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Largest BTF that is read, bytes; those of distribution kernels are 5 to 10 MiB.
const FILE_MAX: u64 = 64 << 20;
/// Most types in a chain of typedefs and qualifiers, and of anonymous members within each other; C code stays below ten.
const DEPTH_MAX: u32 = 32;

const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Why BTF gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// It cannot be read at all.
    #[error(
        "cannot read the kernel's type information {path}: {source}; the kernel must be built with CONFIG_DEBUG_INFO_BTF"
    )]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is not BTF, or damaged.
    #[error("the kernel's type information is damaged: {what} at byte {at}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where, from the beginning of the file.
        at: usize,
    },
    /// A kind of type that is newer than this program.
    #[error("the kernel's type information has a kind of type ({kind}) that this version does not know")]
    UnknownKind {
        /// Its number.
        kind: u32,
    },
    /// There is no such struct.
    #[error("this kernel has no struct {name}")]
    NoStruct {
        /// Its name.
        name: String,
    },
    /// There is no such member.
    #[error("this kernel's struct {name} has no member {member}")]
    NoMember {
        /// The struct that was named.
        name: String,
        /// The part of the path that was not found.
        member: String,
    },
    /// Several structs have this name, and they differ.
    #[error("this kernel has several structs {name}, and member {member} is not at one place in them")]
    Ambiguous {
        /// The struct that was named.
        name: String,
        /// The member.
        member: String,
    },
    /// A member that cannot be loaded by itself.
    #[error("member {member} of this kernel's struct {name} is a bit field")]
    Bitfield {
        /// The struct that was named.
        name: String,
        /// The member.
        member: String,
    },
    /// The member is not what the programs load.
    #[error("member {member} of this kernel's struct {name} has {found} bytes, the programs read {expected}")]
    Size {
        /// The struct that was named.
        name: String,
        /// The member.
        member: String,
        /// Its size, bytes.
        found: u32,
        /// What was expected, bytes.
        expected: u32,
    },
}

/// Parsed type information.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    strings_end: usize,
    /// Where each type begins; type n is entry n - 1.
    types: Vec<u32>,
    /// Named structs; drivers have some of the same names as the kernel's own.
    structs: HashMap<Box<[u8]>, Vec<u32>>,
}

/// Where a member lies and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// From the beginning of the outermost struct, bytes.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
}

#[derive(Clone, Copy)]
struct Type {
    at: usize,
    name: u32,
    kind: u32,
    len: u32,
    kind_flag: bool,
    /// Size in bytes, or the type that is referred to.
    size_or_type: u32,
}

struct Found {
    bits: u32,
    type_id: u32,
}

/// A member of a struct or union, undigested.
#[derive(Clone, Copy)]
struct Entry {
    at: usize,
    name: u32,
    type_id: u32,
    bits: u32,
    /// Bits of a bit field in the new encoding, else 0.
    width: u32,
}

impl Btf {
    /// Reads the running kernel's.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        Self::read(Path::new(VMLINUX))
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let error = |source| BtfError::Read { path: path.display().to_string(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(error)?;
        io::Read::read_to_end(&mut io::Read::take(file, FILE_MAX + 1), &mut bytes).map_err(error)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(error(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        Self::parse(bytes)
    }

    /// Checks the header and walks every type.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let damaged = |what, at| BtfError::Damaged { what, at };
        if half(&bytes, 0)? != MAGIC {
            return Err(damaged("no BTF magic", 0));
        }
        let header = word(&bytes, 4)? as usize;
        if header < HEADER_LEN {
            return Err(damaged("a short header", 4));
        }
        let section = |offset_at: usize, what| -> Result<(usize, usize), BtfError> {
            let start = header.checked_add(word(&bytes, offset_at)? as usize);
            let end = start.and_then(|start| start.checked_add(word(&bytes, offset_at + 4).ok()? as usize));
            match (start, end) {
                (Some(start), Some(end)) if end <= bytes.len() => Ok((start, end)),
                _ => Err(damaged(what, offset_at)),
            }
        };
        let (types_start, types_end) = section(8, "a type section beyond the end")?;
        let (strings, strings_end) = section(16, "a string section beyond the end")?;
        let mut btf = Self { bytes, strings, strings_end, types: Vec::new(), structs: HashMap::new() };
        btf.walk(types_start, types_end)?;
        Ok(btf)
    }

    fn walk(&mut self, start: usize, end: usize) -> Result<(), BtfError> {
        let mut at = start;
        while at < end {
            let ty = self.type_at(at)?;
            let next = at + TYPE_LEN + extra_len(ty)?;
            if next > end {
                return Err(BtfError::Damaged { what: "a type beyond the end of its section", at });
            }
            // FILE_MAX keeps positions and counts within 32 bits.
            self.types.push(at as u32);
            if ty.kind == KIND_STRUCT && ty.name != 0 {
                let name = self.string(ty.name)?.into();
                self.structs.entry(name).or_default().push(self.types.len() as u32);
            }
            at = next;
        }
        Ok(())
    }

    /// Number of types.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// Finds a member by its path, `"ns.inum"`; anonymous structs and unions on the way are looked into, an array stands for
    /// its first element where the path goes on. Of several structs of one name those count that have it.
    pub fn member(&self, structure: &str, path: &str) -> Result<Member, BtfError> {
        let Some(candidates) = self.structs.get(structure.as_bytes()) else {
            return Err(BtfError::NoStruct { name: structure.into() });
        };
        let mut found: Option<Member> = None;
        let mut missing = None;
        for outer in candidates {
            match self.member_of(*outer, structure, path) {
                Ok(member) if found.is_none_or(|found| found == member) => found = Some(member),
                Ok(_) => return Err(BtfError::Ambiguous { name: structure.into(), member: path.into() }),
                Err(error @ BtfError::NoMember { .. }) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        found.ok_or_else(|| missing.unwrap_or_else(|| BtfError::NoStruct { name: structure.into() }))
    }

    fn member_of(&self, outer: u32, structure: &str, path: &str) -> Result<Member, BtfError> {
        let mut current = outer;
        let mut bits = 0u32;
        for segment in path.split('.') {
            let inside = self.element(current)?;
            let found = self
                .search(inside, segment.as_bytes(), structure, DEPTH_MAX)?
                .ok_or_else(|| BtfError::NoMember { name: structure.into(), member: segment.into() })?;
            bits = bits
                .checked_add(found.bits)
                .ok_or(BtfError::Damaged { what: "a member beyond four gigabits", at: 0 })?;
            current = found.type_id;
        }
        if !bits.is_multiple_of(8) {
            return Err(BtfError::Bitfield { name: structure.into(), member: path.into() });
        }
        Ok(Member { offset: bits / 8, size: self.size(current, DEPTH_MAX)? })
    }

    /// The member of this name in a struct or union, anonymous members included.
    fn search(&self, ty: Type, name: &[u8], structure: &str, depth: u32) -> Result<Option<Found>, BtfError> {
        if ty.kind != KIND_STRUCT && ty.kind != KIND_UNION {
            return Ok(None);
        }
        let depth = depth.checked_sub(1).ok_or(BtfError::Damaged { what: "members nested too deeply", at: ty.at })?;
        let mut result = None;
        for index in 0..ty.len as usize {
            let entry = self.entry(ty, index)?;
            let found = if entry.name == 0 {
                let inner = self.resolve(entry.type_id, DEPTH_MAX)?;
                self.search(inner, name, structure, depth)?
            } else if self.string(entry.name)? == name {
                if entry.width != 0 || self.is_bitfield(entry.type_id)? {
                    let member = String::from_utf8_lossy(name).into_owned();
                    return Err(BtfError::Bitfield { name: structure.into(), member });
                }
                Some(Found { bits: 0, type_id: entry.type_id })
            } else {
                None
            };
            let Some(found) = found else { continue };
            if result.is_some() {
                return Err(BtfError::Damaged { what: "two members of one name", at: entry.at });
            }
            self.check_place(ty, index)?;
            let bits = entry.bits.checked_add(found.bits);
            let bits = bits.ok_or(BtfError::Damaged { what: "a member beyond four gigabits", at: entry.at })?;
            result = Some(Found { bits, ..found });
        }
        Ok(result)
    }

    /// One member, as it is written.
    fn entry(&self, ty: Type, index: usize) -> Result<Entry, BtfError> {
        let at = ty.at + TYPE_LEN + index * MEMBER_LEN;
        let position = word(&self.bytes, at + 8)?;
        let (bits, width) = if ty.kind_flag { (position & 0xff_ffff, position >> 24) } else { (position, 0) };
        Ok(Entry { at, name: word(&self.bytes, at)?, type_id: word(&self.bytes, at + 4)?, bits, width })
    }

    /// A member must lie within its struct and overlap no other; in a union, at its beginning.
    fn check_place(&self, ty: Type, index: usize) -> Result<(), BtfError> {
        let own = self.entry(ty, index)?;
        let (start, end) = self.extent(own)?;
        let damaged = |what| Err(BtfError::Damaged { what, at: own.at });
        if end > u64::from(ty.size_or_type) * 8 {
            return damaged("a member beyond its struct");
        }
        if ty.kind == KIND_UNION {
            return if start == 0 { Ok(()) } else { damaged("a member of a union beyond its beginning") };
        }
        for other in (0..ty.len as usize).filter(|other| *other != index) {
            // What is no struct of the kernel's own making (a member without a size) says nothing about its neighbours.
            let Ok((other_start, other_end)) = self.extent(self.entry(ty, other)?) else { continue };
            if other_start < end && start < other_end {
                return damaged("members that overlap");
            }
        }
        Ok(())
    }

    /// First bit of a member, and the one after its last.
    fn extent(&self, entry: Entry) -> Result<(u64, u64), BtfError> {
        let start = u64::from(entry.bits);
        let width = if entry.width != 0 {
            entry.width
        } else if self.is_bitfield(entry.type_id)? {
            word(&self.bytes, self.resolve(entry.type_id, DEPTH_MAX)?.at + TYPE_LEN)? & 0xff
        } else {
            return Ok((start, start + u64::from(self.size(entry.type_id, DEPTH_MAX)?) * 8));
        };
        Ok((start, start + u64::from(width)))
    }

    /// Old encoding of bit fields: an integer type of fewer bits than its bytes hold.
    fn is_bitfield(&self, type_id: u32) -> Result<bool, BtfError> {
        if type_id == 0 {
            return Ok(false);
        }
        let ty = self.resolve(type_id, DEPTH_MAX)?;
        if ty.kind != KIND_INT {
            return Ok(false);
        }
        let encoding = word(&self.bytes, ty.at + TYPE_LEN)?;
        let (shift, bits) = ((encoding >> 16) & 0xff, encoding & 0xff);
        Ok(shift != 0 || u64::from(bits) != u64::from(ty.size_or_type) * 8)
    }

    /// The struct that a path goes on in.
    fn element(&self, type_id: u32) -> Result<Type, BtfError> {
        let ty = self.resolve(type_id, DEPTH_MAX)?;
        if ty.kind == KIND_ARRAY {
            return self.resolve(word(&self.bytes, ty.at + TYPE_LEN)?, DEPTH_MAX);
        }
        Ok(ty)
    }

    fn size(&self, type_id: u32, depth: u32) -> Result<u32, BtfError> {
        let ty = self.resolve(type_id, DEPTH_MAX)?;
        let depth = depth.checked_sub(1).ok_or(BtfError::Damaged { what: "arrays nested too deeply", at: ty.at })?;
        match ty.kind {
            KIND_INT | KIND_STRUCT | KIND_UNION | KIND_ENUM | KIND_FLOAT | KIND_ENUM64 => Ok(ty.size_or_type),
            KIND_PTR => Ok(8),
            KIND_ARRAY => {
                let count = word(&self.bytes, ty.at + TYPE_LEN + 8)?;
                let each = self.size(word(&self.bytes, ty.at + TYPE_LEN)?, depth)?;
                each.checked_mul(count).ok_or(BtfError::Damaged { what: "an array beyond four gigabytes", at: ty.at })
            }
            _ => Err(BtfError::Damaged { what: "a member without a size", at: ty.at }),
        }
    }

    /// Follows typedefs and qualifiers.
    fn resolve(&self, mut type_id: u32, depth: u32) -> Result<Type, BtfError> {
        for _ in 0..depth {
            let at = type_id
                .checked_sub(1)
                .and_then(|index| self.types.get(index as usize))
                .ok_or(BtfError::Damaged { what: "a reference to a type that is not there", at: 0 })?;
            let ty = self.type_at(*at as usize)?;
            match ty.kind {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => type_id = ty.size_or_type,
                _ => return Ok(ty),
            }
        }
        Err(BtfError::Damaged { what: "a chain of types without end", at: 0 })
    }

    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let info = word(&self.bytes, at + 4)?;
        Ok(Type {
            at,
            name: word(&self.bytes, at)?,
            kind: (info >> 24) & 0x1f,
            len: info & 0xffff,
            kind_flag: info >> 31 != 0,
            size_or_type: word(&self.bytes, at + 8)?,
        })
    }

    fn string(&self, offset: u32) -> Result<&[u8], BtfError> {
        let start = self.strings.saturating_add(offset as usize);
        let text = self.bytes.get(start..self.strings_end);
        let end = text.and_then(|text| text.iter().position(|byte| *byte == 0));
        match (text, end) {
            (Some(text), Some(end)) => Ok(&text[..end]),
            _ => Err(BtfError::Damaged { what: "a name outside the strings", at: start }),
        }
    }
}

/// Bytes behind the twelve that every type has.
fn extra_len(ty: Type) -> Result<usize, BtfError> {
    let len = ty.len as usize;
    Ok(match ty.kind {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_PTR | KIND_FWD | KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_FUNC | KIND_FLOAT
        | KIND_TYPE_TAG => 0,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => len * 12,
        KIND_ENUM | KIND_FUNC_PROTO => len * 8,
        kind => return Err(BtfError::UnknownKind { kind }),
    })
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk());
    raw.map(|raw| u32::from_le_bytes(*raw)).ok_or(BtfError::Damaged { what: "an early end", at })
}

fn half(bytes: &[u8], at: usize) -> Result<u16, BtfError> {
    let raw = bytes.get(at..).and_then(|rest| rest.first_chunk());
    raw.map(|raw| u16::from_le_bytes(*raw)).ok_or(BtfError::Damaged { what: "an early end", at })
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
