mod harness;

mod exec;
