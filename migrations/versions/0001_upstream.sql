-- What procjobs.migrate has applied to this database. Procrastinate's own schema came just before, from its package.

create table procjobs.schema_state (
  one boolean primary key default true,
  upstream_schema text not null,
  adopted boolean not null,
  checksum text,
  objects jsonb not null default '{}',
  server_version integer,
  applied_at timestamptz,
  applied_by text,
  constraint one_row check (one)
);
comment on table procjobs.schema_state is 'One row: what migrate applied. procjobs check compares it with what is there.';
comment on column procjobs.schema_state.upstream_schema is 'The schema of Procrastinate''s tables.';
comment on column procjobs.schema_state.adopted is 'True: Procrastinate was installed here before procjobs.';
comment on column procjobs.schema_state.checksum is 'SHA-256 of the sql/ folder, host.sql and the place they were applied to.';
comment on column procjobs.schema_state.objects is 'Fingerprint of every object as migrate left it: {"function procjobs.defer(...)": "md5"}.';
