//! The command line; talks only through the client of api.
