-- Host bindings: what procjobs needs to know about the application, and whether host.sql says it.
-- Owns:        nothing. The host_* views and functions belong to the application's host.sql, applied after this file.
-- Lock order:  reads only.
-- Bodies here never depend on a host_* object: the application may drop and recreate its own at any time.

create or replace function procjobs.host_contract()
returns table (object text, kind text, ord integer, part text, type text, meaning text, needed_for text)
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select v.object, v.kind, v.ord, v.part, v.type, v.meaning, v.needed_for
  from (values
    ('host_people', 'view', 0, null, null, 'People with an account.', 'everything'),
    ('host_people', 'view', 1, 'id', 'uuid', 'Identifies the person, for ever.', null),
    ('host_people', 'view', 2, 'name', 'text', 'How to address the person.', null),
    ('host_people', 'view', 3, 'email', 'text', 'Address for mail; null if there is none.', null),
    ('host_people', 'view', 4, 'phone', 'text', 'Number for SMS and WhatsApp as +4670...; null if there is '
      'none.', null),
    ('host_people', 'view', 5, 'timezone', 'text', 'IANA zone in which the person''s days begin.', null),
    ('host_people', 'view', 6, 'is_admin', 'boolean', 'May operate procjobs: run, cancel, retry, see '
      'everything.', null),
    ('host_people', 'view', 7, 'wants_reports', 'boolean', 'Gets the daily usage report.', null),
    ('host_people', 'view', 8, 'created_at', 'timestamptz', 'When the account was made.', null),
    ('host_people', 'view', 9, 'last_active_at', 'timestamptz', 'Last seen; null if never.', null),

    ('host_organizations', 'view', 0, null, null, 'Organizations, teams or tenants that people belong '
      'to.', 'every mail, invitations, reminders, reports, invoices'),
    ('host_organizations', 'view', 1, 'id', 'uuid', 'Identifies the organization, for ever.', null),
    ('host_organizations', 'view', 2, 'name', 'text', 'Shown in mails and pages.', null),
    ('host_organizations', 'view', 3, 'timezone', 'text', 'IANA zone of its reports and reminders.', null),
    ('host_organizations', 'view', 4, 'logo_url', 'text', 'Picture for the head of its mails; null for the name in '
      'letters.', null),

    ('host_memberships', 'view', 0, null, null, 'Who belongs to which organization: present members only, at most one '
      'row each.', 'invitations, reports'),
    ('host_memberships', 'view', 1, 'organization_id', 'uuid', 'host_organizations.id', null),
    ('host_memberships', 'view', 2, 'person_id', 'uuid', 'host_people.id', null),
    ('host_memberships', 'view', 3, 'role', 'text', 'The application''s own word: owner, admin, member, ...', null),
    ('host_memberships', 'view', 4, 'joined_at', 'timestamptz', 'Since when.', null),

    ('host_recipients', 'view', 0, null, null, 'Whoever may receive something: people themselves, and those whom they '
      'look after.', 'every mail, digests'),
    ('host_recipients', 'view', 1, 'id', 'uuid', 'Identifies the recipient; for a person, the person''s own id.', null),
    ('host_recipients', 'view', 2, 'owner_id', 'uuid', 'host_people.id of the person who may see and cancel what goes '
      'to the recipient.', null),
    ('host_recipients', 'view', 3, 'name', 'text', 'How to address the recipient.', null),
    ('host_recipients', 'view', 4, 'relationship', 'text', 'self, grandmother, client, ...: as the owner calls the '
      'recipient.', null),
    ('host_recipients', 'view', 5, 'email', 'text', 'Address for mail; null if there is none.', null),
    ('host_recipients', 'view', 6, 'phone', 'text', 'Number for SMS and WhatsApp; null if there is none.', null),
    ('host_recipients', 'view', 7, 'timezone', 'text', 'IANA zone in which digests and times are shown.', null),
    ('host_recipients', 'view', 8, 'slack', 'text', 'Slack channel or member to write to; null if there is none.', null),
    ('host_recipients', 'view', 9, 'webhook_url', 'text', 'Address that is called for the recipient; null if there is '
      'none.', null),

    ('host_groups', 'view', 0, null, null, 'Groups that share updates: families, channels, '
      'projects.', 'every mail, digests'),
    ('host_groups', 'view', 1, 'id', 'uuid', 'Identifies the group, for ever.', null),
    ('host_groups', 'view', 2, 'organization_id', 'uuid', 'host_organizations.id; null if it belongs to none.', null),
    ('host_groups', 'view', 3, 'name', 'text', 'Shown in mails.', null),

    ('host_group_recipients', 'view', 0, null, null, 'Who receives what a group shares: at most one row '
      'each.', 'every mail, digests'),
    ('host_group_recipients', 'view', 1, 'group_id', 'uuid', 'host_groups.id', null),
    ('host_group_recipients', 'view', 2, 'recipient_id', 'uuid', 'host_recipients.id', null),
    ('host_group_recipients', 'view', 3, 'muted_until', 'timestamptz', 'No digest before; infinity: nothing until unmuted; '
      'null: not muted.', null),

    ('host_updates', 'view', 0, null, null, 'What was shared in groups.', 'every mail, digests'),
    ('host_updates', 'view', 1, 'id', 'uuid', 'Identifies the update, for ever.', null),
    ('host_updates', 'view', 2, 'group_id', 'uuid', 'host_groups.id', null),
    ('host_updates', 'view', 3, 'author_name', 'text', 'Who shared it.', null),
    ('host_updates', 'view', 4, 'content_type', 'text', 'photos, milestones, text, ...: digests filter by it.', null),
    ('host_updates', 'view', 5, 'title', 'text', 'One line.', null),
    ('host_updates', 'view', 6, 'body', 'text', 'Plain text; null if there is none.', null),
    ('host_updates', 'view', 7, 'url', 'text', 'Where to read it; null if nowhere.', null),
    ('host_updates', 'view', 8, 'image_url', 'text', 'Picture to show with it; null if there is none.', null),
    ('host_updates', 'view', 9, 'created_at', 'timestamptz', 'When it was shared.', null),

    ('host_update_reads', 'view', 0, null, null, 'Which recipient has read which update.', 'digests'),
    ('host_update_reads', 'view', 1, 'update_id', 'uuid', 'host_updates.id', null),
    ('host_update_reads', 'view', 2, 'recipient_id', 'uuid', 'host_recipients.id', null),
    ('host_update_reads', 'view', 3, 'read_at', 'timestamptz', 'When.', null),

    ('host_inbox', 'view', 0, null, null, 'The application''s own in-app notices, which are also mailed in '
      'batches.', 'e-mail batches'),
    ('host_inbox', 'view', 1, 'id', 'uuid', 'Identifies the notice, for ever.', null),
    ('host_inbox', 'view', 2, 'person_id', 'uuid', 'host_people.id', null),
    ('host_inbox', 'view', 3, 'kind', 'text', 'comment, approval, file, ...', null),
    ('host_inbox', 'view', 4, 'title', 'text', 'One line.', null),
    ('host_inbox', 'view', 5, 'body', 'text', 'Plain text; null if there is none.', null),
    ('host_inbox', 'view', 6, 'url', 'text', 'Where it leads; null if nowhere.', null),
    ('host_inbox', 'view', 7, 'created_at', 'timestamptz', 'When it happened.', null),
    ('host_inbox', 'view', 8, 'read_at', 'timestamptz', 'When it was read in the application; null if unread.', null),

    ('host_events', 'view', 0, null, null, 'Events that people attend.', 'event reminders'),
    ('host_events', 'view', 1, 'id', 'uuid', 'Identifies the event, for ever.', null),
    ('host_events', 'view', 2, 'organization_id', 'uuid', 'host_organizations.id', null),
    ('host_events', 'view', 3, 'title', 'text', 'One line.', null),
    ('host_events', 'view', 4, 'starts_at', 'timestamptz', 'When it begins.', null),
    ('host_events', 'view', 5, 'ends_at', 'timestamptz', 'When it ends; null if open.', null),
    ('host_events', 'view', 6, 'timezone', 'text', 'IANA zone of the place.', null),
    ('host_events', 'view', 7, 'location', 'text', 'Where; null if not known.', null),
    ('host_events', 'view', 8, 'url', 'text', 'Its page; null if there is none.', null),
    ('host_events', 'view', 9, 'is_cancelled', 'boolean', 'No reminders go out for it.', null),

    ('host_event_attendees', 'view', 0, null, null, 'Who comes to which event: at most one row each.', 'event '
      'reminders'),
    ('host_event_attendees', 'view', 1, 'event_id', 'uuid', 'host_events.id', null),
    ('host_event_attendees', 'view', 2, 'person_id', 'uuid', 'host_people.id', null),
    ('host_event_attendees', 'view', 3, 'remind_before', 'interval', 'How long before the start to remind; null: not '
      'at all.', null),

    ('host_projects', 'view', 0, null, null, 'Projects paid in two parts: an advance and a balance.', 'payment '
      'reminders'),
    ('host_projects', 'view', 1, 'id', 'uuid', 'Identifies the project, for ever.', null),
    ('host_projects', 'view', 2, 'organization_id', 'uuid', 'host_organizations.id; null if it belongs to none.', null),
    ('host_projects', 'view', 3, 'name', 'text', 'Shown in reminders.', null),
    ('host_projects', 'view', 4, 'contact_id', 'uuid', 'host_people.id of the primary contact, who is reminded; null: '
      'nobody.', null),
    ('host_projects', 'view', 5, 'currency', 'text', 'ISO 4217: EUR, USD, ...', null),
    ('host_projects', 'view', 6, 'advance_paid_at', 'timestamptz', 'When the advance was paid; null if it was '
      'not.', null),
    ('host_projects', 'view', 7, 'balance_due', 'numeric', 'What is left to pay, in the currency.', null),
    ('host_projects', 'view', 8, 'balance_paid_at', 'timestamptz', 'When the balance was paid; null if it was '
      'not.', null),
    ('host_projects', 'view', 9, 'payment_url', 'text', 'Where to pay; null if nowhere.', null),

    ('host_subscriptions', 'view', 0, null, null, 'What organizations subscribe to.', 'invoices'),
    ('host_subscriptions', 'view', 1, 'id', 'uuid', 'Identifies the subscription, for ever.', null),
    ('host_subscriptions', 'view', 2, 'organization_id', 'uuid', 'host_organizations.id', null),
    ('host_subscriptions', 'view', 3, 'plan', 'text', 'Name of the plan.', null),
    ('host_subscriptions', 'view', 4, 'is_active', 'boolean', 'Invoiced on the first of the month.', null),
    ('host_subscriptions', 'view', 5, 'monthly_price', 'numeric', 'For one month, in the currency.', null),
    ('host_subscriptions', 'view', 6, 'currency', 'text', 'ISO 4217.', null),
    ('host_subscriptions', 'view', 7, 'started_at', 'timestamptz', 'Since when.', null),

    ('host_activity', 'view', 0, null, null, 'What people did: the figures of reports.', 'reports'),
    ('host_activity', 'view', 1, 'organization_id', 'uuid', 'host_organizations.id; null if none.', null),
    ('host_activity', 'view', 2, 'person_id', 'uuid', 'host_people.id', null),
    ('host_activity', 'view', 3, 'kind', 'text', 'login, upload, comment, ...', null),
    ('host_activity', 'view', 4, 'happened_at', 'timestamptz', 'When.', null),

    ('host_calendars', 'view', 0, null, null, 'Calendars fed from an ICS address.', 'calendar sync'),
    ('host_calendars', 'view', 1, 'id', 'uuid', 'Identifies the calendar, for ever.', null),
    ('host_calendars', 'view', 2, 'organization_id', 'uuid', 'host_organizations.id; null if it belongs to '
      'none.', null),
    ('host_calendars', 'view', 3, 'name', 'text', 'Shown in pages.', null),
    ('host_calendars', 'view', 4, 'feed_url', 'text', 'Its ICS address.', null),
    ('host_calendars', 'view', 5, 'timezone', 'text', 'IANA zone of events that name none.', null),
    ('host_calendars', 'view', 6, 'is_active', 'boolean', 'Fetched every five minutes.', null),

    ('host_calendar_members', 'view', 0, null, null, 'Onto whose own calendar the events are pushed: at most one row '
      'each.', 'calendar sync'),
    ('host_calendar_members', 'view', 1, 'calendar_id', 'uuid', 'host_calendars.id', null),
    ('host_calendar_members', 'view', 2, 'person_id', 'uuid', 'host_people.id', null),
    ('host_calendar_members', 'view', 3, 'provider', 'text', 'google', null),
    ('host_calendar_members', 'view', 4, 'external_calendar_id', 'text', 'The calendar''s name at the provider, e.g. '
      'primary.', null),

    ('host_uploads', 'view', 0, null, null, 'Files of the uploads'' storage that rows refer to. What is in the storage '
      'and not here is removed after a day.', 'clean-up of orphaned uploads'),
    ('host_uploads', 'view', 1, 'key', 'text', 'Name of the file in the storage: 2031/05/photo.jpg.', null),

    ('host_find_person', 'function', 0, 'p_email text', 'uuid', 'The person who has this e-mail address, in any case '
      'of letters; null if nobody has.', 'invitations'),
    ('host_invitable_roles', 'function', 0, 'p_inviter uuid, p_organization uuid', 'text[]', 'Roles that the person '
      'may give to somebody invited into the organization; empty: may not invite.', 'invitations'),
    ('host_add_member', 'function', 0, 'p_organization uuid, p_person uuid, p_role text', 'boolean', 'Adds the person '
      'to the organization; true if added, false if a member already, whose role then stays. Must be safe to call '
      'twice at once.', 'invitations'),
    ('host_register_url', 'function', 0, 'p_email text, p_continue text', 'text', 'Where somebody without an account '
      'registers: the e-mail pre-filled, going on to p_continue afterwards. A URL, or a path below '
      'base_url.', 'invitations'),
    ('host_mute', 'function', 0, 'p_recipient uuid, p_group uuid, p_until timestamp with time '
      'zone', 'boolean', 'Mutes a group for a recipient (one-click unsubscribe); null unmutes. True if something '
      'changed.', 'unsubscribing from a group'),
    ('host_calendar_token', 'function', 0, 'p_calendar uuid, p_person uuid', 'text', 'Access token for the person''s '
      'calendar at the provider; null if access was never given or was withdrawn. A function, so that the secret is '
      'in no view.', 'calendar sync')
  ) v (object, kind, ord, part, type, meaning, needed_for)
$$;
comment on function procjobs.host_contract() is
  'What a host.sql may bind: each host_* view (ord 0) with its columns (ord 1 ..), each host_* function with its '
    'arguments and result, what they mean and what needs them.';

create or replace function procjobs.list_host_bindings()
returns table (object text, kind text, needed_for text, bound boolean, problem text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with wanted as (
    select c.*, replace(c.type, 'timestamptz', 'timestamp with time zone') as full_type
    from procjobs.host_contract() c
  ),
  views as (
    select v.object, v.kind, v.needed_for, r.oid is not null as bound,
      (
        select string_agg(
          case
            when a.attname is null then format('column %s %s is missing', w.part, w.type)
            else format('column %s is %s, not %s', w.part, format_type(a.atttypid, a.atttypmod), w.type)
          end, '; ' order by w.ord)
        from wanted w
        left join pg_attribute a on a.attrelid = r.oid and a.attname = w.part and not a.attisdropped
        where w.object = v.object
          and w.ord > 0
          and r.oid is not null
          and format_type(a.atttypid, a.atttypmod) is distinct from w.full_type
      ) as problem
    from wanted v
    left join pg_class r on r.oid = to_regclass('procjobs.' || v.object)
    where v.kind = 'view'
      and v.ord = 0
  ),
  functions as (
    select f.object, f.kind, f.needed_for, p.oid is not null as bound,
      case
        when pg_get_function_identity_arguments(p.oid) <> f.part
          then format('arguments are (%s), not (%s)', pg_get_function_identity_arguments(p.oid), f.part)
        when pg_get_function_result(p.oid) <> f.type
          then format('returns %s, not %s', pg_get_function_result(p.oid), f.type)
      end as problem
    from wanted f
    left join pg_proc p on p.proname = f.object and p.pronamespace = to_regnamespace('procjobs')
    where f.kind = 'function'
  )
  select * from views
  union all
  select * from functions
$$;
comment on function procjobs.list_host_bindings() is
  'Every host_* view and function: what needs it, whether host.sql binds it, and what is wrong with it (null: '
    'nothing).';

create or replace function procjobs.check_host_bindings()
returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[];
  v_bound integer;
  v_command text;
begin
  select
    array_agg(format('%s: %s', b.object, b.problem) order by b.object) filter (where b.problem is not null),
    count(*) filter (where b.bound)
  into v_problems, v_bound
  from procjobs.list_host_bindings() b;

  if v_problems is not null then
    raise exception 'host.sql does not bind what it promises: %', v_problems[1]
      using errcode = 'PJ012',
            detail = array_to_string(v_problems, E'\n'),
            hint = 'Cast or name the columns as docs/host-bindings.md says (email::text as email, ...), then run '
              'procjobs migrate again.';
  end if;

  -- What the application did not describe itself is described from the contract; nothing here is for PUBLIC.
  for v_command in
    select case
        when c.kind = 'function'
          then format('comment on function procjobs.%I(%s) is %L', c.object, c.part, c.meaning)
        when c.ord = 0 then format('comment on view procjobs.%I is %L', c.object, c.meaning)
        else format('comment on column procjobs.%I.%I is %L', c.object, c.part, c.meaning)
      end
    from procjobs.host_contract() c
    join procjobs.list_host_bindings() b on b.object = c.object and b.bound
    left join pg_proc p
      on c.kind = 'function' and p.proname = c.object and p.pronamespace = to_regnamespace('procjobs')
    left join pg_attribute a
      on c.ord > 0 and a.attrelid = to_regclass('procjobs.' || c.object) and a.attname = c.part
    where case c.kind
      when 'function' then obj_description(p.oid, 'pg_proc')
      else col_description(to_regclass('procjobs.' || c.object), coalesce(a.attnum, 0))
    end is null
    union all
    select format('revoke all on function procjobs.%I(%s) from public', c.object, c.part)
    from procjobs.host_contract() c
    join procjobs.list_host_bindings() b on b.object = c.object and b.bound
    where c.kind = 'function'
  loop
    execute v_command;
  end loop;

  return v_bound;
end
$$;
comment on function procjobs.check_host_bindings() is
  'Last line of a host.sql: refuses bindings with missing or mistyped columns (PJ012, DETAIL lists them all), '
    'describes the rest, takes them from PUBLIC. Returns how many are bound.';

create or replace function procjobs.require_host(variadic p_objects text[])
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_missing text;
begin
  select string_agg(o, ', ' order by o)
  into v_missing
  from unnest(p_objects) o
  where to_regclass('procjobs.' || o) is null
    and to_regproc('procjobs.' || o) is null;

  if v_missing is not null then
    raise exception 'the application is not bound: % missing', v_missing
      using errcode = 'PJ012',
            detail = 'host.sql creates ' || coalesce(
              (select string_agg(b.object, ', ' order by b.object) from procjobs.list_host_bindings() b where b.bound),
              'nothing'),
            hint = 'Add it to host.sql (procjobs init writes a template, docs/host-bindings.md explains it) and run '
              'procjobs migrate.';
  end if;
end
$$;
comment on function procjobs.require_host(text[]) is
  'Raises PJ012 with the mend unless all these host_* views and functions exist.';

create or replace function procjobs.require_host_of_mail()
returns void
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.require_host('host_recipients', 'host_groups', 'host_group_recipients', 'host_updates', 'host_organizations')
$$;
comment on function procjobs.require_host_of_mail() is
  'Raises PJ012 unless what every mail needs is bound: when one is requested, so that none fails only when it is to be sent.';

create or replace function procjobs.url_encode(value text)
returns text
language sql
immutable
strict
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(string_agg(
    case
      when c ~ '^[A-Za-z0-9_.~-]$' collate "C" then c
      else regexp_replace(upper(encode(convert_to(c, 'UTF8'), 'hex')), '(..)', '%\1', 'g')
    end, '' order by n), '')
  from regexp_split_to_table(value, '') with ordinality t (c, n)
$$;
comment on function procjobs.url_encode(text) is
  'Percent-encodes a value for a URL (RFC 3986, UTF-8); for host_register_url and the like.';
