-- A made-up application that was there before procjobs: a rowing club's. Numbers for keys, other words, times without a zone (the
-- club's own clocks, Zurich; a regatta's: those of its water), rows that are marked instead of deleted, roles as an enum.

create schema club;
create type club.duty as enum ('steers', 'trains', 'rows');
create type club.note_kind as enum ('picture', 'result', 'word');

create table club.member (
  member_no integer generated always as identity primary key,
  public_id uuid not null unique default gen_random_uuid(),
  surname varchar(80) not null,
  given_name varchar(80) not null,
  mail varchar(200),
  mobile varchar(40),
  region varchar(40),
  speaks_for_club boolean not null default false,
  joined timestamp not null default localtimestamp,
  seen timestamp,
  left_on date
);
create unique index member_mail on club.member (lower(mail)) where left_on is null;

create table club.crew (
  crew_no integer primary key,
  called varchar(80) not null,
  disbanded_on date
);
create index crew_uuid on club.crew ((md5('crew:' || crew_no::text)::uuid));

create table club.seat (
  crew_no integer not null references club.crew,
  member_no integer not null references club.member,
  duty club.duty not null,
  since timestamp not null default localtimestamp,
  left_on date,
  primary key (crew_no, member_no)
);

create table club.board (
  board_no smallint primary key,
  crew_no integer references club.crew,
  caption varchar(80) not null
);
create index board_uuid on club.board ((md5('board:' || board_no::text)::uuid));

create table club.board_reader (
  board_no smallint not null references club.board,
  member_no integer not null references club.member,
  quiet_until timestamp,
  primary key (board_no, member_no)
);

create table club.note (
  note_no bigint generated always as identity primary key,
  board_no smallint not null references club.board,
  by_member integer not null references club.member,
  kind club.note_kind not null,
  headline varchar(120) not null,
  words varchar(4000),
  pinned_at timestamp not null,
  withdrawn boolean not null default false
);
create index note_board on club.note ((md5('board:' || board_no::text)::uuid), pinned_at);
create index note_uuid on club.note ((md5('note:' || note_no::text)::uuid));

create table club.note_seen (
  note_no bigint not null references club.note,
  member_no integer not null references club.member,
  at timestamp not null,
  primary key (note_no, member_no)
);

create table club.water (
  water_no integer primary key,
  called varchar(80) not null,
  region varchar(40) not null
);

create table club.regatta (
  regatta_no integer primary key,
  crew_no integer not null references club.crew,
  called varchar(120) not null,
  water_no integer not null references club.water,
  begins timestamp not null,
  minutes integer,
  called_off_on date
);
create index regatta_uuid on club.regatta ((md5('regatta:' || regatta_no::text)::uuid));

create table club.entry (
  regatta_no integer not null references club.regatta,
  member_no integer not null references club.member,
  warn_hours integer,
  scratched boolean not null default false,
  primary key (regatta_no, member_no)
);
create index entry_uuid on club.entry ((md5('regatta:' || regatta_no::text)::uuid));

create table club.boat_order (
  order_no integer primary key,
  crew_no integer references club.crew,
  boat varchar(120) not null,
  buyer_no integer references club.member,
  ccy char(3) not null default 'CHF',
  deposit_on timestamp,
  rest_centimes bigint not null,
  rest_on timestamp,
  struck_off boolean not null default false
);
create index boat_order_uuid on club.boat_order ((md5('order:' || order_no::text)::uuid));
