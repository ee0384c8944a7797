-- What a daily report says: figures of one day, beside those of the day before.
-- Owns:        nothing.
-- Lock order:  reads only.

create or replace function procjobs.day_begin(p_day date, p_zone text)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.cron_next('0 0 * * *', p_zone, p_day::timestamp at time zone p_zone - interval '3 hours')
$$;
comment on function procjobs.day_begin(date, text) is
  'The instant at which a day begins in a zone: midnight, the first of two, or just after the gap where clocks skip it.';

create or replace function procjobs.count_day(p_from timestamptz, p_until timestamptz)
returns table (figure text, value bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  with ended as (
    select h.status::text as status, count(*) as jobs
    from procjobs.job_history h
    where h.finished_at >= p_from and h.finished_at < p_until
    group by h.status
    union all
    -- Dead letters stay where they are until somebody looks.
    select 'failed', count(*)
    from public.procrastinate_jobs j
    where j.status = 'failed' and j.pj_finished_at >= p_from and j.pj_finished_at < p_until
  ),
  mailed as (
    select n.template, count(distinct n.id) as messages
    from procjobs.notification_delivery_logs l
    join procjobs.notification_jobs n on n.id = l.job_id
    where l.finished_at >= p_from and l.finished_at < p_until and l.status = 'sent'
    group by n.template
  )
  select 'jobs_' || s, coalesce((select sum(e.jobs) from ended e where e.status = s), 0)::bigint
  from unnest('{succeeded, failed, cancelled, aborted}'::text[]) s
  union all
  select 'notifications_sent', coalesce((select sum(m.messages) from mailed m), 0)::bigint
  union all
  select 'notifications_failed', (
    select count(*) from procjobs.notification_jobs n where n.status = 'failed' and n.processed_at >= p_from and n.processed_at < p_until
  )
  union all
  select 'digests_sent', coalesce((select m.messages from mailed m where m.template = 'digest'), 0)
  union all
  select 'invitations_sent', coalesce((select m.messages from mailed m where m.template = 'invitation'), 0)
  union all
  select 'invitations_accepted', (
    select count(*) from procjobs.pending_invites i where i.accepted_at >= p_from and i.accepted_at < p_until
  )
$$;
comment on function procjobs.count_day(timestamptz, timestamptz) is
  'What ended from an instant to before another: jobs by state, notifications, digests, invitations. What retention has deleted is not counted.';

create or replace function procjobs.slowest_tasks(p_from timestamptz, p_until timestamptz, p_most integer default 5)
returns table (task text, runs bigint, average double precision, longest double precision)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select h.task_name, count(*), avg(t.took), max(t.took)
  from procjobs.job_history h
  cross join lateral (select extract(epoch from h.finished_at - h.started_at)::double precision as took) t
  where h.finished_at >= p_from and h.finished_at < p_until
    and h.status = 'succeeded'
    and h.started_at is not null
  group by h.task_name
  order by avg(t.took) desc, h.task_name
  limit p_most
$$;
comment on function procjobs.slowest_tasks(timestamptz, timestamptz, integer) is
  'Tasks whose last runs took longest on average, of jobs that succeeded in that time: seconds.';

create or replace function procjobs.failures_of_day(p_from timestamptz, p_until timestamptz, p_most integer default 5)
returns table (fingerprint text, task text, error_class text, jobs bigint)
language sql
stable
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select g.fingerprint, g.task, (
      select a.error_class from procjobs.job_attempts a where a.job_id = g.last_id and a.error_class is not null order by a.id desc limit 1
    ), g.jobs
  from (
    select j.pj_fingerprint as fingerprint, j.task_name::text as task, count(*) as jobs, max(j.id) as last_id
    from public.procrastinate_jobs j
    where j.status = 'failed' and j.pj_finished_at >= p_from and j.pj_finished_at < p_until
    group by j.pj_fingerprint, j.task_name
    order by count(*) desc, j.task_name, j.pj_fingerprint
    limit p_most
  ) g
  order by g.jobs desc, g.task, g.fingerprint
$$;
comment on function procjobs.failures_of_day(timestamptz, timestamptz, integer) is
  'Dead letters of that time by task and error, the most frequent first. No messages: they may quote arguments.';

create or replace function procjobs.say_seconds(p_seconds double precision)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_seconds < 1 then format('%s ms', round((p_seconds * 1000)::numeric))
    when p_seconds < 120 then format('%s s', round(p_seconds::numeric, 1))
    else format('%s min', round((p_seconds / 60)::numeric, 1))
  end
$$;
comment on function procjobs.say_seconds(double precision) is 'A duration for people: 250 ms, 1.5 s, 3.0 min.';

create or replace function procjobs.report_figures(p_day date, p_zone text)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with day as materialized (
    select procjobs.day_begin(p_day - 1, p_zone) as before, procjobs.day_begin(p_day, p_zone) as begin, procjobs.day_begin(p_day + 1, p_zone) as until
  ),
  counted as materialized (
    select
      n.figure, n.value, b.value as before
    from day d
    cross join lateral procjobs.count_day(d.begin, d.until) n
    join lateral procjobs.count_day(d.before, d.begin) b on b.figure = n.figure
  ),
  rate as (
    select
      case when sum(c.value) > 0 then 100.0 * sum(c.value) filter (where c.figure = 'jobs_succeeded') / sum(c.value) end as now,
      case when sum(c.before) > 0 then 100.0 * sum(c.before) filter (where c.figure = 'jobs_succeeded') / sum(c.before) end as before
    from counted c
    where c.figure in ('jobs_succeeded', 'jobs_failed')
  ),
  shown as (
    select f.n, f.label, to_jsonb(c.value) as value, c.value - c.before as change, f.more_is_good, to_char(abs(c.value - c.before), 'FM999,999,999,990') as by
    from (values
      (1, 'jobs_succeeded', 'Jobs that succeeded', null), (3, 'jobs_failed', 'Jobs that failed', false),
      (4, 'jobs_cancelled', 'Jobs cancelled', null), (5, 'jobs_aborted', 'Jobs aborted', null),
      (6, 'notifications_sent', 'Notifications sent', null), (7, 'notifications_failed', 'Notifications failed', false),
      (8, 'digests_sent', 'Digests sent', null), (9, 'invitations_sent', 'Invitations sent', null),
      (10, 'invitations_accepted', 'Invitations accepted', true)
    ) f (n, figure, label, more_is_good)
    join counted c on c.figure = f.figure
    union all
    select 2, 'Success rate', to_jsonb(coalesce(to_char(r.now, 'FM990.0') || ' %', 'no jobs')), round(r.now, 1) - round(r.before, 1), true,
      to_char(abs(round(r.now, 1) - round(r.before, 1)), 'FM990.0') || ' points'
    from rate r
  )
  select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
      'label', s.label, 'value', s.value,
      'change', case when s.change = 0 then 'as the day before' when s.change <> 0 then case when s.change > 0 then '+' else '−' end || s.by end,
      'good', case when s.change <> 0 then s.more_is_good = (s.change > 0) end)) order by s.n)
  from shown s
$$;
comment on function procjobs.report_figures(date, text) is
  'The figures of a local day as the template daily_report shows them, with the change from the day before.';

create or replace function procjobs.report_content(p_day date, p_zone text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_from timestamptz := procjobs.day_begin(p_day, p_zone);
  v_until timestamptz := procjobs.day_begin(p_day + 1, p_zone);
  v_slow jsonb;
  v_failures jsonb;
begin
  select jsonb_agg(jsonb_build_array(s.task, s.runs, procjobs.say_seconds(s.average), procjobs.say_seconds(s.longest)) order by s.average desc, s.task)
  into v_slow
  from procjobs.slowest_tasks(v_from, v_until) s;
  select jsonb_agg(jsonb_build_array(f.task, coalesce(f.error_class, 'no error is known'), coalesce(f.fingerprint, ''), f.jobs) order by f.jobs desc, f.task)
  into v_failures
  from procjobs.failures_of_day(v_from, v_until) f;
  return jsonb_strip_nulls(jsonb_build_object(
    'for_day', p_day, 'timezone_of_day', p_zone, 'figures', procjobs.report_figures(p_day, p_zone),
    'body', format('From midnight to midnight in %s.', replace(p_zone, '_', ' ')),
    'tables', (
      select jsonb_agg(to_jsonb(t) - 'n' order by t.n)
      from (values
        (1, 'Failures', '[{"label": "Task"}, {"label": "Error"}, {"label": "Fingerprint"}, {"label": "Jobs", "numeric": true}]'::jsonb, v_failures),
        (2, 'Slowest tasks', '[{"label": "Task"}, {"label": "Runs", "numeric": true}, {"label": "Average", "numeric": true}, '
          '{"label": "Longest", "numeric": true}]', v_slow)
      ) t (n, title, columns, rows)
      where t.rows is not null
    )));
end
$$;
comment on function procjobs.report_content(date, text) is 'What the report of a local day says, as the template daily_report takes it.';
