-- Views over the published tables. The publisher has made, for every table of tables.py, the table
-- stored.NAME with all rows and the view NAME without undeclared ones, and the table declared.

-- Which numbers stand in the views with one row per SAE; of several the one of lowest rank. A test
-- compares this list with the definitions that evaluations have.
create table stored.headline as
select * from (values
    ('l0', 'l0', 'mean_of_tokens', 1),
    ('l1', 'l1', 'mean_of_tokens', 1),
    ('fvu', 'fvu', 'ratio_of_sums', 1),
    ('explained_variance', 'explained_variance', 'ratio_of_sums', 1),
    ('mse', 'mse', 'per_token', 1),
    ('cosine', 'cosine', 'mean_of_tokens', 1),
    ('l2_ratio', 'l2_ratio', 'mean_of_ratios', 1),
    ('ce_clean', 'ce_clean', 'mean_of_tokens', 1),
    ('delta_lm_loss', 'delta_lm_loss', 'splice_kept', 1),
    ('delta_lm_loss', 'delta_lm_loss', 'splice_all', 2),
    ('loss_recovered', 'loss_recovered', 'zero_ablation_kept', 1),
    ('loss_recovered', 'loss_recovered', 'zero_ablation_all', 2),
    ('loss_recovered_mean', 'loss_recovered', 'mean_ablation_kept', 1),
    ('loss_recovered_mean', 'loss_recovered', 'mean_ablation_all', 2),
    ('kl_score', 'kl_score', 'zero_ablation_kept', 1),
    ('kl_score', 'kl_score', 'zero_ablation_all', 2),
    ('dead_share', 'dead_share', 'never_fired', 1),
    ('gamma', 'relative_reconstruction_bias', 'ratio_of_sums', 1)
) as headline("column", name, definition, rank);
comment on table stored.headline is
    'Which metric and definition each column of leaderboard holds; of several the lowest rank.';
comment on column stored.headline."column" is 'Column of leaderboard.';
comment on column stored.headline.name is 'Name of the metric.';
comment on column stored.headline.definition is 'Its definition.';
comment on column stored.headline.rank is 'Of several definitions that were measured, the lowest.';

-- The version of each model that is in use: the one that was seen last.
create view internal.newest_models as
select model, arg_max(model_fingerprint, created_at) as current_fingerprint
from models group by model;

-- An experiment says which version it is about; one whose file names another revision means that.
create view internal.meant as
select experiment, config ->> '$.model.fingerprint' as meant_fingerprint
from experiments;

-- A model may go back to an earlier version, whose numbers were computed earlier: what belongs to
-- the version in use comes first, then what was computed last.
create view latest_metrics as
select metrics.*
from metrics
left join internal.newest_models using (model)
left join internal.meant using (experiment)
qualify rank() over (
    partition by experiment, site, variant
    order by
        coalesce(
            model_fingerprint = coalesce(meant_fingerprint, current_fingerprint), false
        ) desc,
        created_at desc,
        model_fingerprint desc
) = 1;
comment on view latest_metrics is
    'Metrics of each SAE on the version of the model that is in use, or else the last measured.';

create view latest_applications as
select applications.*
from applications
left join internal.newest_models using (model)
left join internal.meant using (experiment)
qualify rank() over (
    partition by experiment, site, variant
    order by
        coalesce(
            model_fingerprint = coalesce(meant_fingerprint, current_fingerprint), false
        ) desc,
        created_at desc,
        model_fingerprint desc
) = 1;
comment on view latest_applications is
    'Applications of each SAE on the version of the model that is in use, or else the last computed.';

create view leaderboard as
with chosen as (
    select experiment, site, variant, "column", value, stderr
    from latest_metrics join stored.headline using (name, definition)
    qualify row_number() over (
        partition by experiment, site, variant, "column" order by rank, params
    ) = 1
), scores as (
    select
        experiment, site, variant,
        any_value(value) filter ("column" = 'l0') as l0,
        any_value(value) filter ("column" = 'fvu') as fvu,
        any_value(stderr) filter ("column" = 'fvu') as fvu_stderr,
        any_value(value) filter ("column" = 'explained_variance') as explained_variance,
        any_value(value) filter ("column" = 'mse') as mse,
        any_value(value) filter ("column" = 'cosine') as cosine,
        any_value(value) filter ("column" = 'l2_ratio') as l2_ratio,
        any_value(value) filter ("column" = 'l1') as l1,
        any_value(value) filter ("column" = 'loss_recovered') as loss_recovered,
        any_value(value) filter ("column" = 'loss_recovered_mean') as loss_recovered_mean,
        any_value(value) filter ("column" = 'delta_lm_loss') as delta_lm_loss,
        any_value(stderr) filter ("column" = 'delta_lm_loss') as delta_lm_loss_stderr,
        any_value(value) filter ("column" = 'kl_score') as kl_score,
        any_value(value) filter ("column" = 'ce_clean') as ce_clean,
        any_value(value) filter ("column" = 'dead_share') as dead_share,
        any_value(value) filter ("column" = 'gamma') as gamma
    from chosen group by all
)
select
    experiment, site, variant, kind, objective, d_sae, saes.seed,
    coalesce(status, 'not built') as status,
    scores.* exclude (experiment, site, variant),
    saes.tokens, saes.seconds, saes.sae_id, saes.created_at
from declared
left join saes using (experiment, site, variant)
left join scores using (experiment, site, variant)
where variant <> ''
order by experiment, site, fvu nulls last, variant;
comment on view leaderboard is
    'One row per declared SAE, least unexplained variance first; also those not built yet.';
comment on column leaderboard.status is 'complete, diverged, ..., or: not built.';
comment on column leaderboard.l0 is 'Latents on per token.';
comment on column leaderboard.fvu is 'Fraction of variance unexplained.';
comment on column leaderboard.fvu_stderr is 'Its standard error.';
comment on column leaderboard.explained_variance is '1 - fvu.';
comment on column leaderboard.mse is 'Squared error per token.';
comment on column leaderboard.cosine is 'Cosine of activation and reconstruction, mean of tokens.';
comment on column leaderboard.l2_ratio is 'Norm of the reconstruction over that of the activation.';
comment on column leaderboard.l1 is 'Sum of latent activations per token.';
comment on column leaderboard.loss_recovered is 'Loss recovered against zero ablation.';
comment on column leaderboard.loss_recovered_mean is 'Loss recovered against mean ablation.';
comment on column leaderboard.delta_lm_loss is 'Loss added by the SAE, nats per token.';
comment on column leaderboard.delta_lm_loss_stderr is 'Its standard error.';
comment on column leaderboard.kl_score is '1 - KL of the SAE / KL of zero ablation.';
comment on column leaderboard.ce_clean is 'Loss of the undisturbed model, nats per token.';
comment on column leaderboard.dead_share is 'Share of latents that never fire.';
comment on column leaderboard.gamma is
    'Relative reconstruction bias: 1 is none, below 1 the reconstruction is too short (shrinkage).';
comment on column leaderboard.tokens is 'Tokens trained on.';
comment on column leaderboard.seconds is 'Training time.';

-- SAEs that differ in their seed alone are one family, named by their id without its last part. The
-- standard error of a mean over seeds: NULL for one seed, and where some seeds have no value.
create macro internal.seed_error(x, seed) as
    if(count(x) = count(seed), stddev_samp(x) / sqrt(count(x)), null);

create view variants as
with recovery as (
    -- an application may also have rows of baselines and controls, under methods of their own
    select
        experiment, site, variant,
        avg(value) filter (
            application = 'concepts' and method = 'sae' and task = 'all' and name = 'coverage'
            and definition = 'one_to_one' and try_cast(params ->> 'f1' as DOUBLE) = 0.8
        ) as concept_coverage,
        avg(value) filter (
            application = 'dictionary' and method = 'twin' and name = 'mmcs'
        ) as mmcs,
        avg(value) filter (
            application = 'dictionary' and method = 'twin' and name = 'recovered'
        ) as recovered_share
    from latest_applications
    where application in ('concepts', 'dictionary')
    group by all
), cells as (
    select
        leaderboard.*, regexp_replace(variant, '-s[0-9]+$', '') as family,
        cpu_seconds, flops / saes.tokens as flops_per_token,
        concept_coverage, mmcs, recovered_share
    from leaderboard
    left join saes using (experiment, site, variant)
    left join recovery using (experiment, site, variant)
)
select
    experiment, site, family,
    any_value(kind) as kind, any_value(objective) as objective, any_value(d_sae) as d_sae,
    count(*) as num_declared, count(sae_id) as num_seeds,
    count(*) filter (status not in ('complete', 'not built')) as num_unfinished,
    avg(l0) as l0,
    internal.seed_error(l0, sae_id) as l0_stderr,
    avg(fvu) as fvu,
    internal.seed_error(fvu, sae_id) as fvu_stderr,
    avg(explained_variance) as explained_variance,
    internal.seed_error(explained_variance, sae_id) as explained_variance_stderr,
    avg(loss_recovered) as loss_recovered,
    internal.seed_error(loss_recovered, sae_id) as loss_recovered_stderr,
    avg(delta_lm_loss) as delta_lm_loss,
    internal.seed_error(delta_lm_loss, sae_id) as delta_lm_loss_stderr,
    avg(dead_share) as dead_share,
    internal.seed_error(dead_share, sae_id) as dead_share_stderr,
    avg(gamma) as gamma,
    internal.seed_error(gamma, sae_id) as gamma_stderr,
    avg(cpu_seconds) as cpu_seconds,
    internal.seed_error(cpu_seconds, sae_id) as cpu_seconds_stderr,
    avg(flops_per_token) as flops_per_token,
    internal.seed_error(flops_per_token, sae_id) as flops_per_token_stderr,
    avg(concept_coverage) as concept_coverage,
    internal.seed_error(concept_coverage, sae_id) as concept_coverage_stderr,
    avg(mmcs) as mmcs,
    internal.seed_error(mmcs, sae_id) as mmcs_stderr,
    avg(recovered_share) as recovered_share,
    internal.seed_error(recovered_share, sae_id) as recovered_share_stderr
from cells
group by experiment, site, family
order by experiment, site, fvu nulls last, family;
comment on view variants is
    'One row per site and family, SAEs that differ in their seed alone: means over seeds, X_stderr their standard errors (NULL for one seed). SAEs whose training diverged count as they were last.';
comment on column variants.family is 'Id of the SAEs without the seed.';
comment on column variants.kind is 'Architecture.';
comment on column variants.objective is 'Training strategy.';
comment on column variants.num_declared is 'SAEs that the experiment asks for.';
comment on column variants.num_seeds is 'SAEs of them that have been trained.';
comment on column variants.num_unfinished is 'SAEs of those whose training diverged, or was cut short.';
comment on column variants.l0 is 'Latents on per token.';
comment on column variants.fvu is 'Fraction of variance unexplained.';
comment on column variants.explained_variance is '1 - fvu.';
comment on column variants.loss_recovered is 'Loss recovered against zero ablation.';
comment on column variants.delta_lm_loss is 'Loss added by the SAE, nats per token.';
comment on column variants.dead_share is 'Share of latents that never fire.';
comment on column variants.gamma is
    'Relative reconstruction bias: 1 is none, below 1 is shrinkage.';
comment on column variants.cpu_seconds is
    'CPU time of the SAE''s own training steps, those of the language model inside them included.';
comment on column variants.flops_per_token is
    'Operations of the SAE''s own products of matrices in training, per token; none of the language model''s.';
comment on column variants.concept_coverage is
    'Share of the bundled world''s concepts that have a latent of their own, F1 >= 0.8 on other text.';
comment on column variants.mmcs is
    'A twin trained on mixtures of known directions: mean over these of the largest cosine with a decoder row.';
comment on column variants.recovered_share is
    'Share of those directions that the twin found.';

-- A point is on the Pareto front when its loss is below that of every point with fewer latents on,
-- or as many; points with the same L0 are ordered by loss, so of equal points one is kept.
create view frontier as
select
    experiment, site, variant, kind, objective, d_sae, seed,
    l0, fvu, fvu_stderr, delta_lm_loss, delta_lm_loss_stderr, loss_recovered,
    fvu < coalesce(min(fvu) over (
        partition by experiment, site, kind, objective order by l0, fvu, variant
        rows between unbounded preceding and 1 preceding
    ), 'infinity') as is_pareto,
    fvu < coalesce(min(fvu) over (
        partition by experiment, site order by l0, fvu, variant
        rows between unbounded preceding and 1 preceding
    ), 'infinity') as is_pareto_of_site,
    delta_lm_loss < coalesce(min(delta_lm_loss) over (
        partition by experiment, site, kind, objective order by l0, delta_lm_loss, variant
        rows between unbounded preceding and 1 preceding
    ), 'infinity') as is_pareto_in_loss
from leaderboard
where l0 is not null and fvu is not null
order by experiment, site, kind, l0;
comment on view frontier is
    'Sparsity against fidelity of each measured SAE, and whether no other beats it in both.';
comment on column frontier.is_pareto is 'No SAE of this kind and objective at this site beats it in L0 and FVU.';
comment on column frontier.is_pareto_of_site is 'The same among all kinds at this site.';
comment on column frontier.is_pareto_in_loss is 'As is_pareto, in L0 and delta_lm_loss.';

-- Every score beside what a coder that learned nothing scores (floor) and what needs no coder or
-- knows the truth (ceiling), by the same name at the same dial; params also say what was chosen,
-- which may differ. Of several floors the best one counts, of several ceilings likewise.
create view scorecard as
with measured as (
    -- what compares SAEs with one another lands for the whole experiment and names them in params
    select
        latest_metrics.* replace (
            coalesce(nullif(site, ''), params ->> 'site', '') as site,
            coalesce(nullif(variant, ''), params ->> 'variant', '') as variant
        ),
        definitions.metric, definitions.role, definitions.better
    from latest_metrics join definitions using (name, definition, version)
), bounds as (
    select
        experiment, site, variant, scores.name, scores.definition, scores.params, beside.role,
        if(any_value(beside.better) = 'lower', min(beside.value), max(beside.value)) as value,
        if(any_value(beside.better) = 'lower', arg_min(beside.definition, beside.value),
            arg_max(beside.definition, beside.value)) as bound
    from (
        select distinct experiment, site, variant, name, definition, params
        from measured where role = 'score'
    ) as scores
    join measured as beside using (experiment, site, variant, name)
    where beside.role in ('floor', 'ceiling') and beside.value is not null
        -- random_best_of_grid belongs to best_of_grid, and to no other definition
        and (ends_with(beside.definition, '_' || scores.definition) or not exists (
            from measured as other
            where other.role = 'score' and other.name = beside.name
                and ends_with(beside.definition, '_' || other.definition)
        ))
        and list_bool_and([
            coalesce(beside.params ->> dial = scores.params ->> dial, beside.params ->> dial is null)
            for dial in ['k', 'n', 'f1', 'threshold', 'quantile', 'setting', 'method', 'site', 'variant']
        ])
    group by all
)
select
    measured.experiment, measured.site, measured.variant, saes.kind, saes.objective,
    saes.d_sae, saes.seed, measured.metric, measured.name, measured.definition,
    array_to_string([
        dial || '=' || (measured.params ->> dial)
        for dial in ['k', 'n', 'f1', 'threshold', 'quantile', 'setting', 'method']
        if (measured.params ->> dial) is not null
    ], ', ') as dial,
    measured.params, measured.value, measured.stderr, measured.n, measured.unit, measured.better,
    floors.value as floor, floors.bound as floor_is,
    ceilings.value as ceiling, ceilings.bound as ceiling_is,
    measured.reason
from measured
left join saes using (experiment, site, variant)
left join bounds as floors on floors.role = 'floor'
    and (floors.experiment, floors.site, floors.variant, floors.name, floors.definition, floors.params) = (
        measured.experiment, measured.site, measured.variant, measured.name, measured.definition,
        measured.params
    )
left join bounds as ceilings on ceilings.role = 'ceiling'
    and (ceilings.experiment, ceilings.site, ceilings.variant, ceilings.name, ceilings.definition, ceilings.params) = (
        measured.experiment, measured.site, measured.variant, measured.name, measured.definition,
        measured.params
    )
where measured.role = 'score'
order by measured.experiment, measured.site, measured.metric, measured.name, measured.definition,
    measured.params, measured.variant;
comment on view scorecard is
    'Every score of every SAE, with its error, beside floor and ceiling.';
comment on column scorecard.dial is 'What the score was measured at, of the params: k=5, n=20, f1=0.7, ...';
comment on column scorecard.floor is 'What a coder that learned nothing scores, by the same name and settings.';
comment on column scorecard.floor_is is 'Which one that is.';
comment on column scorecard.ceiling is 'What needs no coder, or knows the truth, scores.';
comment on column scorecard.ceiling_is is 'Which one that is.';

create view scorecard_over_seeds as
select
    experiment, site, regexp_replace(variant, '-s[0-9]+$', '') as family, kind, objective, d_sae,
    metric, name, definition, dial,
    avg(value) as value, internal.seed_error(value, seed) as stderr, count(value) as num_seeds,
    avg(floor) as floor, avg(ceiling) as ceiling, any_value(better) as better
from scorecard
group by all
order by experiment, site, metric, name, definition, dial, family;
comment on view scorecard_over_seeds is
    'The scorecard averaged over SAEs that differ in their seed alone.';
comment on column scorecard_over_seeds.stderr is 'Standard error of the mean over seeds; NULL for one seed.';

create view latent_cards as
with by_method as (
    select
        experiment, site, variant, latent,
        list({method: method, text: text, keywords: keywords} order by method) as explanations,
        max(score) as score
    from explanations group by all
), best as (
    select
        experiment, site, variant, latent, document, position,
        array_to_string(list_transform(
            tokens, lambda token, i: if(i = peak + 1, '[' || trim(token) || ']', trim(token))
        ), ' ') as strongest
    from examples where rank = 0 and coalesce(kind, 'top') = 'top'
)
select
    experiment, site, variant, latent, label, density, mean_activation, max_activation,
    score, strongest, document, position, by_method.explanations,
    sae_id, model, model_fingerprint
from latents
left join by_method using (experiment, site, variant, latent)
left join best using (experiment, site, variant, latent)
order by experiment, site, variant, latent;
comment on view latent_cards is
    'One row per latent: statistics, label, what every method says, and where it is strongest.';
comment on column latent_cards.explanations is 'Method, text and keywords of every explanation.';
comment on column latent_cards.score is 'Score of the best explanation, where measured.';
comment on column latent_cards.strongest is 'Text where it is strongest, that token in brackets.';
comment on column latent_cards.document is 'Document of that text.';
comment on column latent_cards.position is 'Position of that token in the document.';

create view application_summary as
select
    experiment, site, variant, application, method, name, definition,
    try_cast(params ->> 'k' as BIGINT) as k,
    try_cast(params ->> 'n' as BIGINT) as n,
    params ->> 'equal' as equal,
    if(starts_with(name, 'best_'), null, try_cast(params ->> 'strength' as DOUBLE)) as strength,
    params ->> 'split' as split,
    avg(value) as value,
    if(count(value) = 1, any_value(stderr), stddev_samp(value) / sqrt(count(value))) as stderr,
    count(value) as num_tasks,
    count(*) - count(value) as num_without_value,
    any_value(reason) as reason
from latest_applications
where task <> 'all'  -- where an application lists its own mean over tasks
group by all
order by all;
comment on view application_summary is
    'Applications by method and setting, averaged over tasks.';
comment on column application_summary.k is 'Probing: latents or coordinates used.';
comment on column application_summary.n is 'Selection: documents chosen.';
comment on column application_summary.equal is 'Selection: n documents, or as many tokens as the greedy choice of n.';
comment on column application_summary.strength is 'Steering: in units of the mean activation norm.';
comment on column application_summary.split is 'Steering: prompts that choose the strength (dev), or the others (test).';
comment on column application_summary.value is 'Mean over tasks.';
comment on column application_summary.stderr is
    'Standard error of that mean over tasks; of the one value where there is one task.';
comment on column application_summary.num_tasks is 'Tasks with a value.';
comment on column application_summary.num_without_value is 'Tasks where there is none.';
comment on column application_summary.reason is 'Why, for one of them.';

create view best_probes as
with scores as (
    select *, method in ('sae_probe', 'sae_all_latents') as is_sae
    from latest_applications
    where application = 'probing' and name = 'accuracy' and value is not null
), ours as (
    select * from scores where is_sae
    qualify row_number() over (
        partition by experiment, site, task order by value desc, variant, method, params
    ) = 1
), rivals as (
    select * from scores where not is_sae
    qualify row_number() over (
        partition by experiment, site, task order by value desc, method, params
    ) = 1
)
select
    experiment, site, task, ours.variant, ours.method,
    try_cast(ours.params ->> 'k' as BIGINT) as k, ours.value as accuracy, ours.stderr,
    rivals.method as rival, rivals.value as rival_accuracy, rivals.stderr as rival_stderr,
    ours.value - rivals.value as gain
from ours left join rivals using (experiment, site, task)
order by all;
comment on view best_probes is
    'Per task the best probe on any SAE of the site, next to the best baseline or control. Both are chosen by their test scores, so both are optimistic.';
comment on column best_probes.k is 'Latents used; NULL for all.';
comment on column best_probes.rival is 'Best method that uses no SAE.';
comment on column best_probes.gain is 'accuracy - rival_accuracy.';

create view drift as
select
    experiment, site, variant, sae_id, name, definition, version, params, model,
    lag(model_fingerprint) over by_version as fingerprint_before,
    model_fingerprint as fingerprint_after,
    lag(value) over by_version as value_before,
    value as value_after,
    value - lag(value) over by_version as difference,
    sqrt(pow(stderr, 2) + pow(lag(stderr) over by_version, 2)) as stderr_difference,
    created_at
from metrics
window by_version as (
    partition by experiment, site, variant, sae_id, name, definition, version, params
    order by created_at, model_fingerprint
)
qualify lag(model_fingerprint) over by_version is not null
order by abs(difference) / stderr_difference desc nulls last;
comment on view drift is
    'How each number of one SAE moved from one version of the model to the next.';
comment on column drift.difference is 'value_after - value_before.';
comment on column drift.stderr_difference is
    'As if the two were independent; on the same texts the true one is smaller.';
comment on column drift.created_at is 'When the later number was computed, UTC.';

create view stale as
with held as (
    select 'saes' as held_in, experiment, site, variant, sae_id, model, model_fingerprint from saes
    union all
    select 'metrics', experiment, site, variant, sae_id, model, model_fingerprint
    from latest_metrics
    union all
    select 'applications', experiment, site, variant, sae_id, model, model_fingerprint
    from latest_applications
    union all
    select 'latents', experiment, site, variant, sae_id, model, model_fingerprint from latents
    union all
    select 'explanations', experiment, site, variant, sae_id, model, model_fingerprint
    from explanations
)
select held.*, current_fingerprint, count(*) as num_rows
from held join internal.newest_models using (model)
where model_fingerprint <> current_fingerprint
group by all
order by experiment, site, variant, held_in;
comment on view stale is
    'Results computed from another version of the model than the newest one that was seen.';
comment on column stale.held_in is 'Table that holds them.';
comment on column stale.model_fingerprint is 'Version of the model they were computed from.';
comment on column stale.current_fingerprint is 'Newest version of that model.';
comment on column stale.num_rows is 'How many rows.';

create view survey_table2 as
with lines as (
    select distinct place, line, name, definitions, k
    from published where source = 'Shu et al. 2025, Table 2'
), cells as (
    select experiment, site, variant, sae_id, lines.* from saes cross join lines
), scores as (
    select experiment, site, variant, place, value, stderr, definition, reason
    from latest_metrics join lines
        on latest_metrics.name = lines.name and list_contains(definitions, definition)
        and (k is null or k = try_cast(coalesce(params ->> 'k', params ->> 'n') as BIGINT))
    qualify row_number() over (
        partition by experiment, site, variant, place
        order by value is null, list_position(definitions, definition), params
    ) = 1
), printed as (
    select line, place, sae, released_as, name, value, is_comparable, caveat
    from published where source = 'Shu et al. 2025, Table 2'
)
select
    experiment, site, coalesce(cells.variant, released_as) as variant,
    coalesce(cells.place, printed.place) as place, coalesce(cells.line, printed.line) as line,
    coalesce(cells.name, printed.name) as name, definition,
    scores.value, scores.stderr,
    if(scores.value is null and experiment is not null,
        coalesce(reason, 'not measured'), reason) as reason,
    printed.sae as published_sae, printed.value as published, is_comparable, caveat, sae_id
from cells left join scores using (experiment, site, variant, place)
full join printed
    on regexp_replace(cells.variant, '-w[0-9]+-s[0-9]+$', '') = released_as
    and cells.place = printed.place
order by experiment nulls last, site, variant, place;
comment on view survey_table2 is
    'The survey''s Table 2 for every SAE: our number and, where it is one of the seven SAEs of that table, the published one. Of those that no experiment imports: the published number alone.';
comment on column survey_table2.variant is
    'Id of the SAE; of those of the survey that no experiment imports its name.';
comment on column survey_table2.place is 'Row of the table, from 0.';
comment on column survey_table2.line is 'The same by name: Sparsity (L0), MSE, ...';
comment on column survey_table2.name is 'Our metric that measures the same.';
comment on column survey_table2.definition is 'The definition our number is by.';
comment on column survey_table2.value is 'Our number.';
comment on column survey_table2.reason is 'Why there is none.';
comment on column survey_table2.published_sae is 'What the survey calls the SAE.';
comment on column survey_table2.published is 'The published number; NULL where it prints a stand-in.';
comment on column survey_table2.is_comparable is 'Whether ours may be laid beside it.';
comment on column survey_table2.caveat is 'What is known against the published number.';

-- a and b are variants, compared at each site of each experiment that has them; where either is
-- the id of an SAE, every pair of matches is compared.
create macro compare(a, b) as table
with ids as (
    select count(*) > 0 as any_id from latest_metrics
    where sae_id in (a, b) and variant not in (a, b)
), matches as (
    select
        *, variant = a or coalesce(sae_id = a, false) as is_a,
        variant = b or coalesce(sae_id = b, false) as is_b,
        if(any_id, '', experiment || chr(10) || site) as place
    from latest_metrics, ids
), side_a as (select * from matches where is_a), side_b as (select * from matches where is_b)
select
    name, definition, version, params,
    side_a.experiment as experiment_a, side_a.site as site_a, side_a.variant as variant_a,
    side_b.experiment as experiment_b, side_b.site as site_b, side_b.variant as variant_b,
    side_a.value as value_a, side_a.stderr as stderr_a,
    side_b.value as value_b, side_b.stderr as stderr_b,
    side_b.value - side_a.value as difference,
    sqrt(pow(side_a.stderr, 2) + pow(side_b.stderr, 2)) as stderr_difference,
    side_a.model_fingerprint = side_b.model_fingerprint as is_same_model
from side_a full join side_b using (place, name, definition, version, params)
order by coalesce(side_a.experiment, side_b.experiment), coalesce(side_a.site, side_b.site),
    name, definition, params;
comment on macro table compare is
    'compare(a, b): every metric of two variants or SAE ids side by side; difference is b - a, its standard error as if the two were independent (on the same texts the true one is smaller).';

-- Explanations by method: what each scores on each latent, which is best, and what that is worth.
-- Scores of single latents by the metrics that judge explanations; the larger the better. Of scores
-- that several methods have on a cell, the one of lowest rank is the main one.
create table stored.explanation_score_names as
select * from (values
    ('detection_balanced_accuracy', 1),
    ('autointerp_balanced_accuracy', 2),
    ('fuzzing_balanced_accuracy', 3),
    ('simulation_pearson', 4),
    ('surprisal_auc', 5),
    ('embedding_auc', 6),
    ('explanation_named', 7),
    ('explanation_recall', 8),
    ('explanation_precision', 9),
    ('input_success', 10),
    ('output_success', 11),
    ('input_gap', 12),
    ('output_logit_rise', 13)
) as names(name, rank);
comment on table stored.explanation_score_names is
    'Scores by which explanations of single latents are compared; the main one is of lowest rank.';
comment on column stored.explanation_score_names.name is 'Name in latent_scores.';
comment on column stored.explanation_score_names.rank is
    'Of the scores that several methods have, the lowest is the main one.';

create view internal.explanation_values as
select
    experiment, site, variant, latent, method, name, rank,
    -- true concepts are not a method but what methods could reach
    method = 'best_concept' as is_ceiling,
    avg(value) filter (definition <> 'another_latent') as value,
    avg(value) filter (definition = 'another_latent') as floor
from latent_scores join stored.explanation_score_names using (name)
where method is not null and definition in ('held_out', 'own', 'another_latent')
group by all;

create view explanation_scores as
with scores as (
    select
        experiment, site, variant, latent, method,
        any_value(value) filter (name = 'detection_balanced_accuracy')
            as detection_balanced_accuracy,
        any_value(value) filter (name = 'autointerp_balanced_accuracy')
            as autointerp_balanced_accuracy,
        any_value(value) filter (name = 'fuzzing_balanced_accuracy') as fuzzing_balanced_accuracy,
        any_value(value) filter (name = 'simulation_pearson') as simulation_pearson,
        any_value(value) filter (name = 'surprisal_auc') as surprisal_auc,
        any_value(value) filter (name = 'embedding_auc') as embedding_auc,
        any_value(value) filter (name = 'explanation_named') as explanation_named,
        any_value(value) filter (name = 'explanation_recall') as explanation_recall,
        any_value(value) filter (name = 'explanation_precision') as explanation_precision,
        any_value(value) filter (name = 'input_success') as input_success,
        any_value(value) filter (name = 'output_success') as output_success,
        any_value(value) filter (name = 'input_gap') as input_gap,
        any_value(value) filter (name = 'output_logit_rise') as output_logit_rise
    from internal.explanation_values group by all
)
select
    experiment, site, variant, latent, method,
    if(score_definition = 'no_answer', null, text) as text,
    if(score_definition = 'no_answer', text, null) as no_answer,
    scores.* exclude (experiment, site, variant, latent, method)
from explanations full join scores using (experiment, site, variant, latent, method)
order by experiment, site, variant, latent, method;
comment on view explanation_scores is
    'One row per latent and method: what it says, and each score it has. Texts are of the explanations asset; metrics score explanations that they compute in the same way from fewer tokens.';
comment on column explanation_scores.text is 'The explanation, where there is one.';
comment on column explanation_scores.no_answer is 'Why a language model gave none.';
comment on column explanation_scores.detection_balanced_accuracy is
    'Does it tell in which held-out windows the latent fires?';
comment on column explanation_scores.autointerp_balanced_accuracy is
    'The same of 14 windows at once.';
comment on column explanation_scores.fuzzing_balanced_accuracy is
    'Does it tell right highlights from wrong ones?';
comment on column explanation_scores.simulation_pearson is
    'Correlation of activations simulated from it with the true ones.';
comment on column explanation_scores.surprisal_auc is
    'Does it lower the loss of windows in which the latent fires?';
comment on column explanation_scores.embedding_auc is
    'Is it nearer to windows in which the latent fires?';
comment on column explanation_scores.explanation_named is
    'Whether it names the true concept of the bundled world, 0 or 1.';
comment on column explanation_scores.explanation_recall is
    'Share of the true concept''s words among its keywords.';
comment on column explanation_scores.explanation_precision is
    'Share of its keywords that are words of the true concept.';
comment on column explanation_scores.input_success is
    'Whether the latent is stronger on texts that fit it, 0 or 1.';
comment on column explanation_scores.output_success is
    'How often steered texts of the latent are found among three sets by it.';
comment on column explanation_scores.input_gap is
    'By how much the latent is stronger on texts that fit, over its largest activation.';
comment on column explanation_scores.output_logit_rise is
    'By how much its keywords'' logits rise above those of all words.';

create view best_explanation as
with known as (
    select * from internal.explanation_values where value is not null and not is_ceiling
), compared as (
    select *, count(*) over one as num_methods, max(value) over one as best
    from known window one as (partition by experiment, site, variant, latent, name)
), cells as (
    select experiment, site, variant, arg_min(name, rank) as main
    from compared where num_methods > 1 group by all
), found as (
    select
        experiment, site, variant, latent, name,
        min(method) filter (value = best) as method,
        list(method order by method) filter (value = best) as methods,
        count(*) filter (value = best) as num_tied,
        any_value(best) as value,
        max(value) filter (value < best) as runner_up,
        any_value(num_methods) as num_methods
    from compared group by all
)
select
    experiment, site, variant, latent, name, coalesce(name = main, false) as is_main,
    if(num_tied = 1, method, null) as method, methods, found.value, num_tied,
    case
        when num_methods = 1 then null
        when num_tied > 1 then 0.0
        else found.value - runner_up
    end as margin,
    num_methods
from found left join cells using (experiment, site, variant)
order by experiment, site, variant, name, latent;
comment on view best_explanation is
    'Per latent and score the explanation method that does best. The main score of an SAE is the first of detection, selection, fuzzing, ... that two or more methods have.';
comment on column best_explanation.name is 'The score by which methods are compared.';
comment on column best_explanation.is_main is 'Whether that is the main score of the SAE.';
comment on column best_explanation.method is 'The best method; NULL where several are equally good.';
comment on column best_explanation.methods is 'All methods that reach the best score.';
comment on column best_explanation.value is 'The best score.';
comment on column best_explanation.num_tied is 'How many methods reach it.';
comment on column best_explanation.margin is
    'Best score less that of the next method; 0 for ties, NULL where one method alone has a score.';
comment on column best_explanation.num_methods is 'Methods that have the score on the latent.';

create view explanation_methods as
with values_ as (
    select
        experiment, site, variant, method, name, rank, latent, is_ceiling, value, floor,
        value - floor as gap,
        if(list_contains(methods, method) and num_methods > 1, 1.0 / num_tied, 0.0) as wins,
        coalesce(num_methods > 1, false) and not is_ceiling as is_compared
    from internal.explanation_values
    left join (
        select experiment, site, variant, latent, name, methods, num_tied, num_methods
        from best_explanation
    ) using (experiment, site, variant, latent, name)
), contests as (
    select experiment, site, variant, name, count(distinct latent) as num_compared
    from values_ where is_compared group by all
), said as (
    select
        experiment, site, variant, method,
        count(*) filter (coalesce(score_definition, '') <> 'no_answer') as num_explained,
        count(*) filter (score_definition = 'no_answer') as num_no_answer
    from explanations group by all
), scores as (
    select
        experiment, site, variant, method, name, rank, any_value(is_ceiling) as is_ceiling,
        avg(value) as value, stddev_samp(value) / sqrt(count(value)) as stderr,
        count(value) as n,
        avg(floor) as floor, stddev_samp(floor) / sqrt(count(floor)) as floor_stderr,
        avg(gap) as gap, stddev_samp(gap) / sqrt(count(gap)) as gap_stderr,
        sum(wins) filter (not is_ceiling) as wins
    from values_ group by all
)
select
    experiment, site, variant, method, name, is_ceiling, value, stderr, n, floor, floor_stderr,
    gap, gap_stderr, if(is_ceiling, null, wins / nullif(num_compared, 0)) as share_best,
    num_compared, num_explained, num_no_answer
from scores
left join contests using (experiment, site, variant, name)
left join said using (experiment, site, variant, method)
order by experiment, site, variant, rank, value desc nulls last, method;
comment on view explanation_methods is
    'Per SAE and explanation method each score: mean over latents, what the explanation of another latent scores (the floor), and on which share of latents the method is best.';
comment on column explanation_methods.name is 'The score.';
comment on column explanation_methods.is_ceiling is
    'Whether this is the true concept of the bundled world, which no method competes with.';
comment on column explanation_methods.value is 'Mean over the latents that have the score.';
comment on column explanation_methods.stderr is 'Standard error of that mean; NULL for one latent.';
comment on column explanation_methods.n is 'Latents that have the score.';
comment on column explanation_methods.floor is
    'The same with the explanation of another latent; NULL where that was not scored.';
comment on column explanation_methods.gap is
    'Mean of score less floor over latents that have both: what the explanation is worth.';
comment on column explanation_methods.gap_stderr is 'Its standard error.';
comment on column explanation_methods.share_best is
    'Share of compared latents on which it is best, ties divided; these sum to 1 over methods.';
comment on column explanation_methods.num_compared is
    'Latents on which two or more methods have the score.';
comment on column explanation_methods.num_explained is 'Latents that the method explains at all.';
comment on column explanation_methods.num_no_answer is
    'Latents about which a language model was asked and gave no usable answer.';
