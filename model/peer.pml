/* A member, and the newcomer: OutcomeMachine and the executor behind it. */

/* The step to begin next, or the first of those to run again: x. */
inline find_next(i) {
  x = 0;
  do :: x < NS && state[IS(i, x)] != WAITING -> x++ :: else -> break od;
  if
  :: x == NS -> x = 0; do :: x < NS && state[IS(i, x)] != NONE -> x++ :: else -> break od
  :: else
  fi
}

inline start(i, s) {
  y = epoch[i];
  printf("peer %d begins step %d in epoch %d\n", i, s, y);
  state[IS(i, s)] = OPEN; at[IS(i, s)] = y;
  begun[ES(y, s)] = begun[ES(y, s)] | B(i);
  if :: over[y] -> assert(begun[ES(over[y], s)] == 0) :: else fi;
  z = 1;
  do
  :: z <= NE -> if :: over[z] == y -> assert(begun[ES(z, s)] == 0) :: else fi; z++
  :: else -> break
  od;
  y = 0; z = 0
}

/* A leaver comes to the step from which on it has no part: what it runs goes on, what waits is over
 * here. */
inline leave(i) {
  reach(i, pending[i]); y = 0;
  do
  :: y < NS ->
     if :: state[IS(i, y)] == WAITING || state[IS(i, y)] == NONE -> state[IS(i, y)] = BEFORE
     :: else
     fi;
     y++
  :: else -> break
  od;
  y = 0
}

#define DUE(i, s) (pending[i] != 0 && (s) >= from[pending[i]] - 1 && NAMED(s))

#define WAITS(i, s) (state[IS(i, s)] == WAITING)
#if NS == 1
#define CAN_BEGIN(i) (state[IS(i, 0)] == NONE || WAITS(i, 0))
#elif NS == 2
#define CAN_BEGIN(i) (state[IS(i, 1)] == NONE || WAITS(i, 0) || WAITS(i, 1))
#else
#define CAN_BEGIN(i) (state[IS(i, 2)] == NONE || WAITS(i, 0) || WAITS(i, 1) || WAITS(i, 2))
#endif

inline begin_next(i) {
  find_next(i);
  if
  :: x == NS
  :: x < NS && state[IS(i, x)] == NONE && (failsAhead[i] & B(x)) ->
     failsAhead[i] = failsAhead[i] & ~B(x); fail(i, x)
  :: else ->
     if
     :: DUE(i, x) && (mem[pending[i]] & B(i)) ->
        z = pending[i];
        assert(entered[z] == 0 || entered[z] == x + 1);
        if
        :: entered[z] == 0 ->
           entered[z] = x + 1;
           if :: joins[z] == NO -> joins[z] = x :: else fi
        :: else
        fi;
        assert(!(mem[z] & ~mem[over[z]]) || joins[z] == x);
        reach(i, z); z = 0;
        start(i, x)
     :: DUE(i, x) && !(mem[pending[i]] & B(i)) -> leave(i)
     :: else ->
        if
#ifndef MUT_NO_HOLD
        :: hold[i] != NO && x >= hold[i]
#endif
        :: else -> start(i, x)
        fi
     fi
  fi;
  x = 0
}

/* hold: a promise to begin nothing from x on, above all that is decided: newcomers run the rest. */
inline promise(i, g) {
  find_next(i);
#ifndef MUT_HELD_BELOW_DECIDED
  y = x;
  do
  :: y < NS ->
     if
     :: state[IS(i, y)] >= COMMITTED || (failsAhead[i] & B(y)) -> x = y + 1
     :: else
     fi;
     y++
  :: else -> break
  od;
  y = 0;
#endif
  gen[i] = g;
  if
  :: hold[i] != NO && holdEpoch[i] == holdFor[g]      /* asked again */
  :: else -> hold[i] = x; holdEpoch[i] = holdFor[g]
  fi;
  printf("peer %d holds for epoch %d from step %d\n", i, holdFor[g], hold[i]);
  promised[GI(g, i)] = hold[i] + 1;
  x = 0
}

inline complete(i, s) {
  y = at[IS(i, s)];
  printf("peer %d completes step %d of epoch %d: DONE\n", i, s, y);
  state[IS(i, s)] = COMPLETE;
  doneBy[ES(y, s)] = doneBy[ES(y, s)] | B(i);
#ifdef MUT_DELIVER_AT_COMPLETION
  commit(i, s, y);
#endif
  y = 0
}

#ifdef MUT_NO_FREEZE
#define MAY_END(i) true
#else
#define MAY_END(i) (!FROZEN(i))
#endif
#ifdef MUT_ANY_EPOCHS_DONE
#define DONES(i, s) (doneBy[ES(at[IS(i, s)], s)] | doneBy[ES(at[IS(i, s)] - 1, s)])
#else
#define DONES(i, s) doneBy[ES(at[IS(i, s)], s)]
#endif
#ifdef MUT_A_DONE_MISSING
#define ENOUGH(have, want) (((want) & ~(have) & ~B(0)) == 0)
#else
#define ENOUGH(have, want) (((want) & ~(have)) == 0)
#endif
#define ARRIVED(i, s) (((TAKES_PART(at[IS(i, s)], s)) & ~begun[ES(at[IS(i, s)], s)]) == 0)

/* fence: freeze, tell what is here; a promise. */
inline report(i, g) {
  printf("peer %d freezes for epoch %d and reports to coordinator %d\n", i, flushTo[g], g);
  gen[i] = g;
  if :: frozenTo[i] < flushTo[g] -> frozenTo[i] = flushTo[g] :: else fi;
  told[g] = told[g] | B(i);
  toldEpoch[GI(g, i)] = epoch[i];
  x = 0;
  do
  :: x < NS ->
     toldState[GIS(g, i, x)] = state[IS(i, x)]; toldAt[GIS(g, i, x)] = at[IS(i, x)]; x++
  :: else -> break
  od;
  x = 0
}

/* An Install that was overtaken by the FLUSH which ended its view is left alone. */
#define OVERTAKEN(i, e) (FROZEN(i) && (e) < frozenTo[i])
#define INSTALLS(i, e) (installBy[e] != 0 && (mem[e] & B(i)) && (e) > epoch[i] && \
                        installBy[e] >= gen[i] && !OVERTAKEN(i, e) && \
                        (OUTSIDE(i) || FROZEN(i)))

inline install(i, e) {
  assert(i == J || !OUTSIDE(i));                          /* who has left comes back as another */
  gen[i] = installBy[e];
  x = 0;
  do
  :: x < NS ->
     y = decision[ES(e, x)];
     if
     :: OUTSIDE(i) -> state[IS(i, x)] = (x < joins[e] -> BEFORE : NONE)
     :: state[IS(i, x)] == OPEN || state[IS(i, x)] == COMPLETE || state[IS(i, x)] == WAITING ->
        if
        :: y == COMMIT -> assert(state[IS(i, x)] == COMPLETE); commit(i, x, at[IS(i, x)])
        :: y == FAIL -> fail(i, x)
        :: else -> state[IS(i, x)] = WAITING; at[IS(i, x)] = 0
        fi
     :: state[IS(i, x)] == COMMITTED -> assert(y != RETRY && y != FAIL)
#ifndef MUT_FAILURE_NOT_AWAITED
     :: state[IS(i, x)] == NONE && y == FAIL -> failsAhead[i] = failsAhead[i] | B(x)
#endif
     :: else
     fi;
     x++
  :: else -> break
  od;
  x = 0; y = 0;
  reach(i, e)
}

#define COMPLETES(s) \
  :: d_step { state[IS(i, s)] == OPEN && MAY_END(i) && ARRIVED(i, s) -> complete(i, s) }
#define COMMITS(s) \
  :: d_step { state[IS(i, s)] == COMPLETE && MAY_END(i) && \
              ENOUGH(DONES(i, s), TAKES_PART(at[IS(i, s)], s)) -> \
              commit(i, s, at[IS(i, s)]); tidy() }
#define REPORTS(g) \
  :: d_step { flushTo[g] != 0 && (asked[g] & B(i)) && gen[i] <= g && !(told[g] & B(i)) -> \
              report(i, g) }
#define HOLDS(g) \
  :: d_step { epoch[i] != 0 && holdFor[g] != 0 && (mem[over[holdFor[g]]] & B(i)) && \
              gen[i] <= g && holdFor[g] > epoch[i] && pending[i] < holdFor[g] && \
              promised[GI(g, i)] == 0 -> promise(i, g) }
#define IS_RELEASED(g) \
  :: d_step { holdEpoch[i] != 0 && cancelled[g] >= holdEpoch[i] && gen[i] <= g && \
              (mem[dView] & B(i)) -> \
              printf("peer %d holds no more: coordinator %d\n", i, g); \
              gen[i] = g; hold[i] = NO; holdEpoch[i] = 0 }
#define ACTIVATED(e) \
  :: d_step { epoch[i] != 0 && from[e] != 0 && (mem[over[e]] & B(i)) && \
              activateBy[e] >= gen[i] && (e) > epoch[i] && pending[i] < (e) && !FROZEN(i) -> \
              printf("peer %d will enter epoch %d from step %d on\n", i, e, from[e] - 1); \
              pending[i] = e; hold[i] = NO; holdEpoch[i] = 0 }
#define INSTALLED(e) \
  :: d_step { INSTALLS(i, e) -> install(i, e); tidy() }

/* Excluded: this peer is in no view from e on, but it is still admitted. */
inline exclude(i, e) {
  printf("peer %d is excluded from epoch %d on\n", i, e);
  gen[i] = installBy[e]; reach(i, e);
  failsAhead[i] = 0; x = 0;
  do
  :: x < NS ->
     if :: state[IS(i, x)] < COMMITTED -> state[IS(i, x)] = BEFORE; at[IS(i, x)] = 0 :: else fi;
     x++
  :: else -> break
  od;
  x = 0
}
#define IS_EXCLUDED(e) \
  :: d_step { i == J && installBy[e] != 0 && over[e] == 0 && !OUTSIDE(i) && (e) > epoch[i] && \
              !(mem[e] & B(i)) && installBy[e] >= gen[i] -> exclude(i, e); tidy() }

proctype Peer(byte i) {
  do
  :: d_step { !OUTSIDE(i) && !FROZEN(i) && CAN_BEGIN(i) -> begin_next(i) }
#if EXCLUDES
  IS_EXCLUDED(2)
#if NE > 2
  IS_EXCLUDED(3)
#endif
#endif
  COMPLETES(0)
  COMMITS(0)
#if NS > 1
  COMPLETES(1)
  COMMITS(1)
#endif
#if NS > 2
  COMPLETES(2) COMMITS(2)
#endif
  REPORTS(1)
#if NG > 1
  REPORTS(2)
#endif
#if NG > 2
  REPORTS(3)
#endif
#if PLANS
  HOLDS(1) IS_RELEASED(1)
#if NG > 1
  HOLDS(2) IS_RELEASED(2)
#endif
#if NG > 2
  HOLDS(3) IS_RELEASED(3)
#endif
  ACTIVATED(2)
#if NE > 2
  ACTIVATED(3)
#endif
#if NE > 3
  ACTIVATED(4)
#endif
#endif
  INSTALLED(2)
#if NE > 2
  INSTALLED(3)
#endif
#if NE > 3
  INSTALLED(4)
#endif
#if NE > 4
  INSTALLED(5)
#endif
  od
}
