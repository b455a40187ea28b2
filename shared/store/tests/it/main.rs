//! The store on both databases: the same schema, the same behaviour of the facade, and SQL that both understand.

mod claims;
mod facade;
mod marks;
mod pins;
mod promotions;
mod retention;
mod roles;
mod rows;
mod schema;
mod statements;
