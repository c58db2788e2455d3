//! Looks for bytes in everything that a host and a collector keep: files as they lie, frames decompressed, database values.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use breakglass_api::frame::{Frame, Unpacker, frame_len};
use prost::Message;
use sqlx::{ConnectOptions, Row, sqlite::SqliteConnectOptions};

use crate::terminal::find;

/// How every frame begins.
const FRAME_MAGIC: &[u8] = b"BGF1";

/// How every SQLite database begins.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";

/// Names every place below `folder` where `needle` lies, plain, in a frame, or in a database value.
pub fn places(folder: &Path, needle: &[u8]) -> Result<Vec<String>> {
    let mut places = Vec::new();
    for file in files(folder)? {
        // Gone since it was listed: an acknowledged segment, a database journal.
        let Ok(bytes) = fs::read(&file) else { continue };
        if find(&bytes, needle).is_some() {
            places.push(format!("{} as it lies", file.display()));
        }
        if bytes.starts_with(SQLITE_MAGIC) {
            places.extend(database(&file, needle)?);
        } else if !is_log(&file)
            && frames(&bytes, &mut Unpacker::default())?.iter().any(|frame| find(&frame.batch, needle).is_some())
        {
            places.push(format!("{} inside a frame", file.display()));
        }
    }
    Ok(places)
}

/// Whether a file is a database's write-ahead log: pages in no order, which are read as values of the database.
fn is_log(file: &Path) -> bool {
    file.to_string_lossy().ends_with("-wal")
}

/// A frame that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its size, bytes.
    pub bytes: usize,
    /// Its batch, decompressed.
    pub batch: Vec<u8>,
}

/// The frames that lie in `bytes`, whatever is between them. `unpacker` may know what the first of them continues.
pub fn frames(bytes: &[u8], unpacker: &mut Unpacker) -> Result<Vec<Found>> {
    let mut found_frames = Vec::new();
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| find(rest, FRAME_MAGIC)) {
        at += found;
        let frame = frame_len(&bytes[at..]).ok().and_then(|length| bytes.get(at..at + length)).map(Frame::parse);
        match frame {
            Some(Ok(frame)) => {
                let length = frame_len(&bytes[at..])?;
                found_frames.push(Found { bytes: length, batch: unpacker.batch(&frame)?.encode_to_vec() });
                at += length;
            }
            // The magic by chance, or a frame that is not whole.
            _ => at += FRAME_MAGIC.len(),
        }
    }
    Ok(found_frames)
}

/// Every file below a folder that is still there when it is come to.
pub fn files(top: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != top => continue,
            entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            // Where the folder does not say what an entry is, it is looked at, and may be gone by then.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(files)
}

/// Values of a database can be split over pages, so they are read as values too.
fn database(file: &Path, needle: &[u8]) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut connection = SqliteConnectOptions::new().filename(file).read_only(true).connect().await?;
        let tables =
            sqlx::query("select name from sqlite_master where type = 'table'").fetch_all(&mut connection).await?;
        let mut places = Vec::new();
        for table in tables {
            let table: String = table.try_get(0)?;
            let quoted = table.replace('"', "\"\"");
            let columns =
                sqlx::query("select name from pragma_table_info(?)").bind(&table).fetch_all(&mut connection).await?;
            for column in columns {
                let column: String = column.try_get(0)?;
                let query = format!("select cast(\"{}\" as blob) from \"{quoted}\"", column.replace('"', "\"\""));
                // Tables without stored content cannot be read; what they were made from lies elsewhere. Not so the frames.
                let rows = match sqlx::query(&query).fetch_all(&mut connection).await {
                    Err(error) if table == "frames" => return Err(error.into()),
                    Err(_) => continue,
                    Ok(rows) => rows,
                };
                // Frames lie in the order in which they came, and this is only ever used with one host.
                let mut unpacker = Unpacker::default();
                for row in rows {
                    let value: Option<Vec<u8>> = row.try_get(0)?;
                    let value = value.unwrap_or_default();
                    if find(&value, needle).is_some()
                        || frames(&value, &mut unpacker)?.iter().any(|frame| find(&frame.batch, needle).is_some())
                    {
                        places.push(format!("{}: table {table}, column {column}", file.display()));
                    }
                }
            }
        }
        Ok(places)
    })
}

#[cfg(test)]
mod tests {
    use breakglass_api::{
        frame::{Header, Sealer, seal},
        v1::{Batch, Event, Exec, event::Body},
    };

    use super::*;

    fn frame(secret: &[u8]) -> Vec<u8> {
        let exec = Exec { argv: vec![secret.to_vec(); 50], ..Exec::default() };
        let batch =
            Batch { events: vec![Event { body: Some(Body::Exec(exec)), ..Event::default() }], ..Batch::default() };
        let header = Header {
            stream_id: [1; 16],
            boot_id: [2; 16],
            seq: 1,
            prev: [0; 32],
            first_boot_ns: 0,
            last_boot_ns: 0,
            wall_offset_ns: 0,
            events: 1,
        };
        seal(header, &batch, 3).unwrap().bytes
    }

    #[test]
    fn finds_frames_between_other_bytes() {
        let mut bytes = b"head BGF1 by chance".to_vec();
        bytes.extend(frame(b"correct horse"));
        bytes.extend(b"tail");
        let batches = frames(&bytes, &mut Unpacker::default()).unwrap();
        assert_eq!(batches.len(), 1);
        assert!(find(&batches[0].batch, b"correct horse").is_some());
    }

    #[test]
    fn finds_what_only_the_last_frame_of_a_run_says() {
        let folder = std::env::temp_dir().join(format!("breakglass-remains-run-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (mut sealer, mut frames, mut prev) = (Sealer::new(1).unwrap(), Vec::new(), [0; 32]);
        for (seq, word) in (1..).zip(["horse", "horse horse", "horse battery"]) {
            let exec = Exec { argv: vec![word.into()], ..Exec::default() };
            let event = Event { body: Some(Body::Exec(exec)), ..Event::default() };
            let header = Header { seq, prev, ..Frame::parse(&frame(b"")).unwrap().header };
            let mut batch = Batch { events: vec![event], ..Batch::default() };
            let sealed = sealer.seal(header, &mut batch, u64::MAX).unwrap();
            prev = sealed.hash;
            frames.push(sealed.bytes);
        }
        assert_eq!(Frame::parse(&frames[2]).unwrap().readable_from(), 1);
        fs::write(folder.join("segment"), frames.concat()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(folder.join("db")).create_if_missing(true);
            let mut connection = options.connect().await.unwrap();
            sqlx::query("create table frames (bytes blob)").execute(&mut connection).await.unwrap();
            for frame in frames {
                sqlx::query("insert into frames values (?)").bind(frame).execute(&mut connection).await.unwrap();
            }
        });
        let places = places(&folder, b"horse battery").unwrap();
        assert!(places.iter().any(|place| place.contains("table frames")), "{places:?}");
        assert!(places.iter().any(|place| place.ends_with("segment inside a frame")), "{places:?}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn finds_what_lies_in_files_and_databases() {
        let folder = std::env::temp_dir().join(format!("breakglass-remains-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("plain"), "battery").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = SqliteConnectOptions::new().filename(folder.join("db")).create_if_missing(true);
            let mut connection = options.connect().await.unwrap();
            sqlx::query("create table frames (bytes blob)").execute(&mut connection).await.unwrap();
            let insert = sqlx::query("insert into frames values (?)").bind(frame(b"staple"));
            insert.execute(&mut connection).await.unwrap();
        });
        assert_eq!(places(&folder, b"battery").unwrap().len(), 1);
        assert!(places(&folder, b"staple").unwrap().iter().any(|place| place.contains("table frames")));
        assert!(places(&folder, b"tinder").unwrap().is_empty());
        fs::remove_dir_all(&folder).unwrap();
    }
}
