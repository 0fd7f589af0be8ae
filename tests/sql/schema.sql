-- What every object of the schema must have: a comment, a pinned search_path, no rights for PUBLIC.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

create temp view public_function as
  select p.oid::regprocedure::text as name, p.*
  from pg_proc p where p.pronamespace = 'durable'::regnamespace and p.proname !~ '^_';

select cmp_ok(count(*), '>=', 30::bigint, 'the public functions are found') from public_function;
select is_empty($$ select name from public_function where obj_description(oid, 'pg_proc') is null $$,
  'every public function has a comment');
select is_empty($$ select name from public_function where obj_description(oid, 'pg_proc') ~ '(TODO|FIXME)' $$,
  'no comment is unfinished');
select is_empty($$ select name from public_function where proargnames is null and pronargs > 0 $$,
  'every parameter of a public function has a name');
select is_empty(
  $$ select c.oid::regclass from pg_class c
     where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') and not c.relispartition
       and obj_description(c.oid, 'pg_class') is null
       and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i') $$,
  'every table, view and sequence has a comment');
select is_empty(
  $$ select t.oid::regtype from pg_type t where t.typnamespace = 'durable'::regnamespace and t.typtype = 'e' $$,
  'no type is an enum: a new value could not be used in the transaction that adds it, so no upgrade could add one');
select is_empty(
  $$ select t.oid::regtype from pg_type t
     where t.typnamespace = 'durable'::regnamespace and t.typtype in ('e', 'd') and obj_description(t.oid, 'pg_type') is null $$,
  'every type has a comment');
select is_empty(
  $$ select distinct m.code from public_function f, regexp_matches(obj_description(f.oid, 'pg_proc'), 'WF[0-9]{3}', 'g') as m(code)
     where m.code[1] not between 'WF001' and 'WF015' $$,
  'comments name only errors that exist');

select is_empty(
  $$ select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'durable'::regnamespace and p.prosecdef
       and (p.proconfig @> array['search_path=pg_catalog, pg_temp']) is not true $$,
  'every SECURITY DEFINER function pins its search_path');
select is_empty(
  $$ select name from public_function
     where (proconfig @> array['search_path=pg_catalog, pg_temp']) is not true $$,
  'every public function pins its search_path');
select is_empty(
  $$ select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'durable'::regnamespace and p.prosecdef and p.proname ~ '^_' and p.prorettype <> 'trigger'::regtype $$,
  'no private function is SECURITY DEFINER, but those of triggers, which run at the commit of whoever fired them');
select is_empty(
  $$ select p.oid::regprocedure from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
     where p.pronamespace = 'durable'::regnamespace and a.grantee = 0 $$,
  'no function is executable by PUBLIC');
select is_empty(
  $$ select c.oid::regclass from pg_class c, aclexplode(c.relacl) a
     where c.relnamespace = 'durable'::regnamespace and a.grantee = 0 $$,
  'no table or view is open to PUBLIC');
select is_empty(
  $$ select n.nspname from pg_namespace n, aclexplode(n.nspacl) a where n.nspname = 'durable' and a.grantee = 0 $$,
  'the schema is closed to PUBLIC');

select is_empty(
  $$ select con.conrelid::regclass, con.conname from pg_constraint con
     where con.connamespace = 'durable'::regnamespace and con.conrelid <> 0 and not con.conislocal is false
       and con.conname !~ ('^' || (select c.relname from pg_class c where c.oid = con.conrelid)) and con.coninhcount = 0
       and not (select c.relispartition or c.relname ~ '_shape$' from pg_class c where c.oid = con.conrelid) $$,
  'every constraint is named after its table');
select is_empty(
  $$ select c.oid::regclass from pg_class c
     where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'S') and c.relpersistence = 'p'
       and not c.relispartition and c.relname !~ '_shape$' and c.relname <> 'setting_defaults'
       and c.oid <> all (select unnest(extconfig) from pg_extension where extname = 'durable') $$,
  'every table and sequence with data of users is kept by pg_dump');

select finish();
rollback;
