-- Fingerprint: one row for each object that migrate answers for, with the MD5 of its definition, owner and grants.
-- %(upstream)s is the schema of Procrastinate's tables. Only grants to PUBLIC, owners and our roles count: what a
-- company grants to its own roles is its own business. Reads the catalogs only and takes no lock on anything of ours.

with rooms as (
  select oid, nspname
  from pg_catalog.pg_namespace
  where nspname in ('procjobs', %(upstream)s)
),
relations as (
  select c.*, r.nspname
  from pg_catalog.pg_class c
  join rooms r on r.oid = c.relnamespace
  where not c.relispartition
    and (r.nspname = 'procjobs' or c.relname like 'procrastinate\_%%')
),
objects (kind, name, acl, owner, definition) as (
  select 'schema', nspname::text, n.nspacl, n.nspowner, ''
  from pg_catalog.pg_namespace n
  where nspname = 'procjobs'

  union all
  select
    'function',
    pg_catalog.format('%%I.%%I(%%s)', r.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid)),
    coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)),
    p.proowner,
    pg_catalog.pg_get_functiondef(p.oid)
  from pg_catalog.pg_proc p
  join rooms r on r.oid = p.pronamespace
  where p.prokind in ('f', 'p')
    and (r.nspname = 'procjobs' or p.proname like 'procrastinate\_%%')

  union all
  select
    'trigger',
    pg_catalog.format('%%I on %%I.%%I', t.tgname, c.nspname, c.relname),
    null,
    c.relowner,
    pg_catalog.pg_get_triggerdef(t.oid) || t.tgenabled::text
  from pg_catalog.pg_trigger t
  join relations c on c.oid = t.tgrelid
  where not t.tgisinternal

  union all
  select
    'view',
    pg_catalog.format('%%I.%%I', nspname, relname),
    coalesce(relacl, pg_catalog.acldefault('r', relowner)),
    relowner,
    pg_catalog.pg_get_viewdef(oid) || coalesce(reloptions::text, '')
  from relations
  where relkind in ('v', 'm')

  union all
  select
    'table',
    pg_catalog.format('%%I.%%I', nspname, relname),
    coalesce(relacl, pg_catalog.acldefault('r', relowner)),
    relowner,
    pg_catalog.concat_ws(
      '|',
      relkind, relrowsecurity, relforcerowsecurity, reloptions::text,
      (
        select pg_catalog.string_agg(
          pg_catalog.concat_ws(
            ' ', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
            pg_catalog.pg_get_expr(d.adbin, d.adrelid)
          ),
          ',' order by a.attname
        )
        from pg_catalog.pg_attribute a
        left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = relations.oid
          and a.attnum > 0
          and not a.attisdropped
      ),
      (
        select pg_catalog.string_agg(
          k.conname || ' ' || pg_catalog.pg_get_constraintdef(k.oid), ',' order by k.conname
        )
        from pg_catalog.pg_constraint k
        where k.conrelid = relations.oid
          and k.contype <> 'n'
      ),
      (
        select pg_catalog.string_agg(
          pg_catalog.concat_ws(
            ' ', p.polname, p.polcmd, p.polpermissive, p.polroles::pg_catalog.regrole[]::text,
            pg_catalog.pg_get_expr(p.polqual, p.polrelid), pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid)
          ),
          ',' order by p.polname
        )
        from pg_catalog.pg_policy p
        where p.polrelid = relations.oid
      )
    )
  from relations
  where relkind in ('r', 'p')

  union all
  select 'index', pg_catalog.format('%%I.%%I', c.nspname, i.relname), null, i.relowner, pg_catalog.pg_get_indexdef(i.oid)
  from relations c
  join pg_catalog.pg_index x on x.indrelid = c.oid
  join pg_catalog.pg_class i on i.oid = x.indexrelid

  union all
  select
    'type',
    pg_catalog.format('%%I.%%I', r.nspname, t.typname),
    null,
    t.typowner,
    coalesce(
      (
        select pg_catalog.string_agg(e.enumlabel, ',' order by e.enumsortorder)
        from pg_catalog.pg_enum e
        where e.enumtypid = t.oid
      ),
      ''
    )
  from pg_catalog.pg_type t
  join rooms r on r.oid = t.typnamespace
  where t.typtype in ('e', 'd')
    and (r.nspname = 'procjobs' or t.typname like 'procrastinate\_%%')

  union all
  select
    'role',
    r.rolname::text,
    null,
    r.oid,
    pg_catalog.concat_ws(
      ' ', r.rolsuper, r.rolcreaterole, r.rolcanlogin, r.rolbypassrls,
      (
        select pg_catalog.string_agg(g.rolname, ',' order by g.rolname)
        from pg_catalog.pg_auth_members m
        join pg_catalog.pg_roles g on g.oid = m.roleid
        where m.member = r.oid
      )
    )
  from pg_catalog.pg_roles r
  where r.rolname in ('procjobs_owner', 'procjobs_producer', 'procjobs_worker', 'procjobs_reader', 'procjobs_admin')
)
select
  kind || ' ' || name as object,
  pg_catalog.md5(
    pg_catalog.concat_ws(
      '|',
      definition,
      pg_catalog.pg_get_userbyid(owner),
      (
        select pg_catalog.string_agg(item::text, ',' order by item::text)
        from pg_catalog.unnest(acl) as item
        where pg_catalog.split_part(item::text, '=', 1) in ('', pg_catalog.pg_get_userbyid(owner)::text)
          or item::text like 'procjobs\_%%'
      )
    )
  ) as fingerprint
from objects
order by object
