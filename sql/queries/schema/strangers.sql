-- needs: nothing

-- name: list_carriers
-- Everything by which a statement on some tables could run code, or that could pass for PostgreSQL's own code, one row
-- each: its name, what it uses as OIDs and as the text of expression trees, why it is refused whatever it uses, and the
-- SQL that removes it. Nothing that may hold rows is ever dropped. Run with search_path = pg_catalog. %(tables)s are names
-- as SQL writes them; other tables of %(admin)s were made by a migration.
WITH ours AS MATERIALIZED (
    SELECT c.*, quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
    FROM unnest(%(tables)s::text[]) t JOIN pg_class c ON c.oid = to_regclass(t) JOIN pg_namespace n ON n.oid = c.relnamespace
), trusted AS MATERIALIZED (
    SELECT oid FROM ours UNION SELECT oid FROM pg_class WHERE pg_get_userbyid(relowner) = %(admin)s
)
SELECT 'table' AS kind, name, relname::text AS bare, pg_get_userbyid(relowner)::text AS owner, NULL::text AS tree,
       '{}'::int8[] AS functions, '{}'::int8[] AS operators, '{}'::int8[] AS types, '{}'::int8[] AS others,
       'is no plain table' AS reason,
       format('CREATE SCHEMA IF NOT EXISTS before_posduif; ALTER TABLE %%s SET SCHEMA before_posduif', name) AS fix
FROM ours WHERE relkind <> 'r'
UNION ALL
SELECT 'constraint', format('%%s.%%I', o.name, conname), conname, pg_get_userbyid(relowner), conbin::text,
       '{}', coalesce(conexclop::int8[], '{}'), '{}', '{}', NULL, format('ALTER TABLE %%s DROP CONSTRAINT %%I', o.name, conname)
FROM pg_constraint c JOIN ours o ON o.oid = conrelid WHERE contype IN ('c', 'x')
UNION ALL
SELECT 'constraint', format('%%s.%%I', conrelid::regclass, conname), conname,
       pg_get_userbyid((SELECT relowner FROM pg_class WHERE oid = conrelid)), NULL,
       '{}', (conpfeqop || conppeqop || conffeqop)::int8[], '{}', '{}',
       CASE WHEN conrelid NOT IN (SELECT oid FROM trusted) THEN format('ties %%s, which is not posduif''s, to %%s',
                                                                      conrelid::regclass, confrelid::regclass)
            WHEN confrelid NOT IN (SELECT oid FROM trusted) THEN format('ties %%s to %%s, which is not posduif''s',
                                                                       conrelid::regclass, confrelid::regclass) END,
       format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname)
FROM pg_constraint
WHERE contype = 'f' AND conparentid = 0 AND (conrelid IN (SELECT oid FROM ours) OR confrelid IN (SELECT oid FROM ours))
UNION ALL
SELECT 'column', format('%%s.%%I', o.name, attname), attname, pg_get_userbyid(relowner), adbin::text,
       '{}', '{}', '{}', '{}', NULL,
       format('ALTER TABLE %%s %%s', o.name,
              format(CASE attgenerated WHEN '' THEN 'ALTER %%I DROP DEFAULT' WHEN 's' THEN 'ALTER %%I DROP EXPRESSION'
                     ELSE 'DROP COLUMN %%I' END, attname))  -- a virtual column holds nothing
FROM pg_attrdef JOIN ours o ON o.oid = adrelid JOIN pg_attribute a ON a.attrelid = o.oid AND a.attnum = adnum
UNION ALL
SELECT 'column', format('%%s.%%I', o.name, attname), attname, pg_get_userbyid(relowner), NULL,
       '{}', '{}', ARRAY[atttypid::int8], '{}', NULL,
       format('ALTER TABLE %%s ALTER %%I TYPE %%s USING %%I::%%s', o.name, attname,
              coalesce(format_type(nullif(typbasetype, 0), typtypmod), 'text'), attname,
              coalesce(format_type(nullif(typbasetype, 0), typtypmod), 'text'))
FROM pg_attribute JOIN ours o ON o.oid = attrelid JOIN pg_type t ON t.oid = atttypid
WHERE attnum > 0 AND NOT attisdropped
UNION ALL
SELECT CASE WHEN c.oid IS NULL THEN 'index' ELSE 'constraint' END,
       CASE WHEN c.oid IS NULL THEN format('%%I.%%I', n.nspname, x.relname) ELSE format('%%s.%%I', o.name, conname) END,
       coalesce(conname, x.relname), pg_get_userbyid(o.relowner), concat(indexprs::text, ' ', indpred::text), '{}', '{}', '{}',
       ARRAY(SELECT k::int8 FROM unnest(indclass::oid[] || indcollation::oid[] || x.relam) k), NULL,
       CASE WHEN c.oid IS NULL THEN format('DROP INDEX %%I.%%I', n.nspname, x.relname)
            ELSE format('ALTER TABLE %%s DROP CONSTRAINT %%I', o.name, conname) END
FROM pg_index i JOIN ours o ON o.oid = indrelid JOIN pg_class x ON x.oid = indexrelid JOIN pg_namespace n ON n.oid = x.relnamespace
LEFT JOIN pg_constraint c ON c.conindid = indexrelid AND c.conrelid = indrelid AND contype IN ('p', 'u', 'x')
UNION ALL
SELECT 'statistics', format('%%I.%%I', n.nspname, stxname), stxname, pg_get_userbyid(stxowner), stxexprs::text, '{}', '{}', '{}', '{}',
       NULL, format('DROP STATISTICS %%I.%%I', n.nspname, stxname)
FROM pg_statistic_ext JOIN ours o ON o.oid = stxrelid JOIN pg_namespace n ON n.oid = stxnamespace
UNION ALL
SELECT 'policy', format('%%s.%%I', o.name, polname), polname, pg_get_userbyid(relowner), concat(polqual::text, ' ', polwithcheck::text),
       '{}', '{}', '{}', '{}', NULL, format('DROP POLICY %%I ON %%s', polname, o.name)
FROM pg_policy JOIN ours o ON o.oid = polrelid
UNION ALL
SELECT 'rule', format('%%s.%%I', o.name, rulename), rulename, pg_get_userbyid(relowner), NULL, '{}', '{}', '{}', '{}',
       'rewrites statements', format('DROP RULE %%I ON %%s', rulename, o.name)
FROM pg_rewrite JOIN ours o ON o.oid = ev_class WHERE o.relkind = 'r'
UNION ALL
SELECT 'trigger', format('%%s.%%I', o.name, tgname), tgname, pg_get_userbyid(relowner), tgqual::text, ARRAY[tgfoid::int8], '{}', '{}', '{}',
       NULL, format('DROP TRIGGER %%I ON %%s', tgname, o.name)
FROM pg_trigger JOIN ours o ON o.oid = tgrelid WHERE NOT tgisinternal OR tgfoid >= 16384
UNION ALL
SELECT 'table', format('%%s', inhrelid::regclass), c.relname, pg_get_userbyid(c.relowner), NULL, '{}', '{}', '{}', '{}',
       format('inherits from %%s', inhparent::regclass),
       format(CASE WHEN c.relispartition THEN 'ALTER TABLE %%2$s DETACH PARTITION %%1$s' ELSE 'ALTER TABLE %%1$s NO INHERIT %%2$s' END,
              inhrelid::regclass, inhparent::regclass)
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
WHERE (inhrelid IN (SELECT oid FROM ours) OR inhparent IN (SELECT oid FROM ours))
  AND NOT (inhrelid IN (SELECT oid FROM trusted) AND inhparent IN (SELECT oid FROM trusted))
UNION ALL
SELECT 'view', format('%%s', v.oid::regclass), v.relname, pg_get_userbyid(v.relowner), ev_action::text, '{}', '{}', '{}', '{}', NULL,
       CASE v.relkind WHEN 'v' THEN format('DROP VIEW %%s', v.oid::regclass) END
FROM pg_rewrite r JOIN pg_class v ON v.oid = ev_class
WHERE v.relkind IN ('v', 'm') AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                                            AND d.refclassid = 'pg_class'::regclass AND d.refobjid IN (SELECT oid FROM ours))
UNION ALL
SELECT 'function', format('%%s', p.oid::regprocedure), proname, pg_get_userbyid(proowner), NULL, '{}', '{}', '{}', '{}',
       'could pass for PostgreSQL''s function of that name',
       format('ALTER ROUTINE %%s RENAME TO %%I', p.oid::regprocedure, left(proname, 55) || '_before')
FROM pg_proc p JOIN pg_roles r ON r.oid = proowner
WHERE pronamespace = 'public'::regnamespace AND NOT r.rolsuper AND r.rolname <> %(admin)s
  AND EXISTS (SELECT FROM pg_proc b WHERE b.pronamespace = 'pg_catalog'::regnamespace AND b.proname = p.proname)
UNION ALL
SELECT 'operator', format('%%s', o.oid::regoperator), oprname, pg_get_userbyid(oprowner), NULL, '{}', '{}', '{}', '{}',
       'could pass for PostgreSQL''s operator of that name', format('DROP OPERATOR %%s', o.oid::regoperator)
FROM pg_operator o JOIN pg_roles r ON r.oid = oprowner
WHERE oprnamespace = 'public'::regnamespace AND NOT r.rolsuper AND r.rolname <> %(admin)s
  AND EXISTS (SELECT FROM pg_operator b WHERE b.oprnamespace = 'pg_catalog'::regnamespace AND b.oprname = o.oprname);

-- name: list_functions
-- What functions are: whether PostgreSQL brings them, what they depend on, and whose they are. *by_name* says that an
-- argument names what is run or read, *definer* that the owner's rights are used, *member* that an extension brings it.
SELECT p.oid::int8 AS oid, p.oid::regprocedure::text AS name, p.proname::text AS bare, p.oid < 16384 AS builtin,
       p.provolatile::text AS volatility,
       p.oid < 16384 AND p.proname <> 'nextval' AND (
           p.proname ~ '(_to_xml|_to_xmlschema|_to_xml_and_xmlschema)$|^pg_input_'
           OR p.proargtypes::oid[] && ARRAY['regclass', 'regtype', 'regproc', 'regprocedure', 'regoper', 'regoperator',
                                            'oid', 'cstring', 'internal', 'refcursor']::regtype[]::oid[]) AS by_name,
       p.prosecdef AS definer, pg_get_userbyid(p.proowner)::text AS owner,
       EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e') AS member
FROM pg_proc p WHERE p.oid = ANY (%(oids)s::int8[]::oid[]);

-- name: list_operators
-- The functions that operators are.
SELECT oid::int8 AS oid, oid::regoperator::text AS name, oprcode::oid::int8 AS function FROM pg_operator
WHERE oid = ANY (%(oids)s::int8[]::oid[]);

-- name: list_types
-- What types are made of, and the expressions of a domain.
SELECT t.oid::int8 AS oid, format_type(t.oid, NULL) AS name, pg_get_userbyid(t.typowner)::text AS owner, t.typtype::text AS kind,
       CASE WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem ELSE 0 END::int8 AS element,
       t.typbasetype::int8 AS base,
       concat_ws(' ', t.typdefaultbin::text,
                 (SELECT string_agg(conbin::text, ' ') FROM pg_constraint WHERE contypid = t.oid AND contype = 'c')) AS tree
FROM pg_type t WHERE t.oid = ANY (%(oids)s::int8[]::oid[]);
