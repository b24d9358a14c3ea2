/* A coordinator: planned views, the flush, what it writes and what it says on that ground. */

#define UNBORN 0
#define IDLE 1
#define HOLDING 2       /* a plan whose members are asked to hold */
#define ASKING 3        /* a flush */
#define OVER 4          /* deposed, and it has noticed: its journal refuses the write */

#ifdef MUT_NO_FENCE
#define MAY_WRITE(g) true
#else
#define MAY_WRITE(g) (dGen == (g))
#endif
#define CURRENT (dSwitched -> dAct : dView)

inline begin_flush(g) {
  dHigh++; dFlushing = 1;
  printf("coordinator %d flushes to epoch %d, members %d\n", g, dHigh, mem[CURRENT]);
  flushTo[g] = dHigh;
  asked[g] = mem[CURRENT];
  judged[g] = dKept | B(dView);
#ifndef MUT_ACTIVATED_VIEW_FORGOTTEN
  if :: dAct -> judged[g] = judged[g] | B(dAct) :: else fi;
#endif
  phase = ASKING
}

inline end_plan(g) {
  holdFor[g] = 0; x = 0;
  do :: x < N -> promised[GI(g, x)] = 0; x++ :: else -> break od;
  x = 0
}

inline end_flush(g) {
  flushTo[g] = 0; asked[g] = 0; judged[g] = 0; told[g] = 0; x = 0;
  do
  :: x < N ->
     toldEpoch[GI(g, x)] = 0; y = 0;
     do
     :: y < NS -> toldState[GIS(g, x, y)] = 0; toldAt[GIS(g, x, y)] = 0; y++
     :: else -> break
     od;
     x++
  :: else -> break
  od;
  x = 0; y = 0
}

inline take_over(g) {
  dGen = g;
  printf("coordinator %d takes over\n", g);
  if
  :: dFlushing && dHigh < NE -> begin_flush(g)
  :: dFlushing && dHigh == NE -> phase = OVER       /* the bound of this model */
  :: else ->
     phase = IDLE;
     cancelled[g] = (dAct -> dAct - 1 : dHigh);
     if :: installBy[dView] -> installBy[dView] = g :: else fi;
     if
     :: dAct ->
        activateBy[dAct] = g;
        if :: dSwitched -> installBy[dAct] = g :: else fi
     :: else
     fi
  fi
}

/* Members have installed the view that the plan is based on. */
#define FOLLOWS(i) (!(mem[dView] & B(i)) || (epoch[i] >= dView))
#define MAY_PLAN (dAct == 0 && dHigh < NE && FOLLOWS(0) && FOLLOWS(1) && FOLLOWS(2))

inline plan(g, members) {
  dHigh++;
  printf("coordinator %d plans epoch %d, members %d\n", g, dHigh, members);
  assert(mem[dHigh] == 0 || mem[dHigh] == (members));
  mem[dHigh] = members; over[dHigh] = dView;
  joins[dHigh] = ((members) & ~mem[dView] -> NO : joins[dView]);
  holdFor[g] = dHigh; phase = HOLDING
}

#define PROMISED(g, i) (promised[GI(g, i)] != 0 || !(mem[over[holdFor[g]]] & B(i)))

inline activate(g) {
  y = holdFor[g]; x = 0; z = 0;
#ifdef MUT_LEAST_HOLD
  z = NS + 1;
#endif
  do
  :: x < N ->
     if
#ifdef MUT_LEAST_HOLD
     :: promised[GI(g, x)] != 0 && promised[GI(g, x)] < z -> z = promised[GI(g, x)]
#else
     :: promised[GI(g, x)] > z -> z = promised[GI(g, x)]
#endif
     :: else
     fi;
     x++
  :: else -> break
  od;
  printf("coordinator %d activates epoch %d from step %d on\n", g, y, z - 1);
  from[y] = z; activateBy[y] = g;
#ifdef MUT_JOINER_AT_S
  if :: joins[y] == NO -> joins[y] = z - 1; installBy[y] = g :: else fi;
#endif
#ifndef MUT_ACTIVATION_NOT_WRITTEN
  dAct = y;
#endif
  x = 0; y = 0; z = 0;
  end_plan(g); phase = IDLE
}

/* Every member has entered the planned view: the older one is over, but its steps may be open. */
#define HAS_ENTERED(i) (!(mem[dView] & mem[dAct] & B(i)) || (epoch[i] >= dAct))

inline complete_activation() {
  printf("all have entered epoch %d\n", dAct);
#ifndef MUT_OLDER_VIEW_FORGOTTEN
  dKept = dKept | B(dView);
#endif
  dView = dAct; dAct = 0; dSwitched = 0
}

/* The one recovery rule, from the reports of `who`; step `fails` fails if it would run again. */
inline decide(g, fails) {
  oldest = NO; x = 0;
  do
  :: x < N ->
     if :: (who & B(x)) && toldEpoch[GI(g, x)] < oldest -> oldest = toldEpoch[GI(g, x)] :: else fi;
     x++
  :: else -> break
  od;
  x = 0;
  do
  :: x < NS ->
     knows = 0; holds = 0; newest = 0; y = 0;
     do
     :: y < N ->
        if
        :: (who | witness) & B(y) ->
           z = toldState[GIS(g, y, x)];
           if :: z == COMMITTED -> knows = 1 :: else fi;
           if :: witness & B(y) -> z = NONE :: else fi;
           if :: z == OPEN || z == COMPLETE || z == WAITING -> holds = 1 :: else fi;
           if
           :: (z == OPEN || z == COMPLETE) && toldAt[GIS(g, y, x)] > newest ->
              newest = toldAt[GIS(g, y, x)]
           :: else
           fi
        :: else
        fi;
        y++
     :: else -> break
     od;
     /* Every surviving participant of the newest attempt holds its result. */
     right = (newest != 0 && (judged[g] & B(newest)) && (TAKES_PART(newest, x) & who) -> 1 : 0);
     y = 0;
     do
     :: y < N ->
        if
        :: right && (TAKES_PART(newest, x) & who & B(y)) ->
           if
#ifdef MUT_ONE_IS_ENOUGH
           :: true
#else
           :: toldState[GIS(g, y, x)] == COMPLETE && toldAt[GIS(g, y, x)] == newest
           :: else -> right = 0
#endif
           fi
        :: else
        fi;
        y++
     :: else -> break
     od;
#ifdef MUT_PRESUMED_ABORT
     right = 0;
#endif
     if :: carriedAt[x] <= oldest -> carried[x] = 0; carriedAt[x] = 0 :: else fi;
     z = ES(flushTo[g], x);
     if
#ifndef MUT_NOTHING_CARRIED
     :: carried[x] == FAIL || (carried[x] != 0 && holds) -> decision[z] = carried[x]
#endif
     :: else ->
        if
        :: !holds -> decision[z] = 0
        :: holds && (knows || right) -> decision[z] = COMMIT
        :: else -> decision[z] = ((fails) == x -> FAIL : RETRY)
        fi
     fi;
     if
     :: decision[z] == COMMIT || decision[z] == FAIL ->
        carried[x] = decision[z]; carriedAt[x] = flushTo[g]
     :: else
     fi;
     printf("epoch %d, told by %d: step %d gets decision %d\n", flushTo[g], who, x, decision[z]);
     x++
  :: else -> break
  od;
  x = 0; y = 0; z = 0; oldest = 0; knows = 0; holds = 0; newest = 0; right = 0
}

inline install_all(g) {
  y = flushTo[g];
  assert(mem[y] == 0 || mem[y] == who);
  mem[y] = who; joins[y] = joins[CURRENT]; installBy[y] = g
}

inline write_view(g) {
  dView = flushTo[g]; dKept = 0; dAct = 0; dSwitched = 0; dFlushing = 0
}

/* Who leaves by the activated plan has no place any more once those who stay may have gone on
 * without it: unless one of them, not having switched, says that they have not. */
#if PLANS & 2
inline part_with_leavers(g) {
  if
  :: dAct != 0 && !dSwitched && (mem[dView] & ~mem[dAct]) ->
     right = 1; x = 0;
     do
     :: x < N ->
        if
        :: (who & mem[dAct] & B(x)) && toldEpoch[GI(g, x)] < dAct ->
           y = 0;
           do
           :: y < from[dAct] - 1 ->
              if
              :: toldState[GIS(g, x, y)] < COMMITTED -> right = 0
              :: else
              fi;
              y++
           :: else -> break
           od
        :: else
        fi;
        x++
     :: else -> break
     od;
#ifdef MUT_LEAVER_ALONE
     if :: (who & mem[dAct]) == 0 -> right = 0 :: else fi;
#endif
#ifndef MUT_LEAVERS_STAY
     if
     :: right -> witness = who & ~mem[dAct]; who = who & mem[dAct]
     :: !right && (who & B(LEAVER)) && toldEpoch[GI(g, LEAVER)] >= dAct ->
        witness = B(LEAVER); who = who & ~B(LEAVER)
     :: else
     fi;
#endif
     x = 0; y = 0; right = 0
  :: else
  fi
}
#endif

#define OF(set) :: (told[g] & (set)) == (set) -> who = set

proctype Coordinator(byte g) {
  byte phase = UNBORN, who = 0, witness = 0, fails = NO;
  d_step {
    if
    :: g == 1 -> phase = IDLE
    :: g > 1 && dGen == g - 1 -> take_over(g)
    fi
  }
  do
#if PLANS & 1
  :: d_step { phase == IDLE && dGen == g && MAY_PLAN && OUTSIDE(J) &&
              !(mem[dView] & B(J)) -> plan(g, mem[dView] | B(J)) }
#endif
#if PLANS & 2
  :: d_step { phase == IDLE && dGen == g && MAY_PLAN && (mem[dView] & B(LEAVER)) ->
              plan(g, mem[dView] & ~B(LEAVER)) }
#endif
#if PLANS
  :: d_step { phase == HOLDING && PROMISED(g, 0) && PROMISED(g, 1) && PROMISED(g, 2) ->
              if :: MAY_WRITE(g) -> activate(g) :: else -> phase = OVER fi }
  :: d_step { phase == HOLDING ->
              printf("coordinator %d cancels epoch %d\n", g, holdFor[g]);
              cancelled[g] = holdFor[g]; end_plan(g); phase = IDLE }
  :: d_step { phase == IDLE && dGen == g && dAct && !dSwitched && entered[dAct] ->
              printf("coordinator %d knows that epoch %d is entered\n", g, dAct);
              dSwitched = 1; installBy[dAct] = g }
  :: d_step { phase == IDLE && dGen == g && dAct && dSwitched &&
              HAS_ENTERED(0) && HAS_ENTERED(1) && HAS_ENTERED(2) -> complete_activation() }
#endif
  :: d_step { (phase == IDLE || phase == HOLDING) && dGen == g && dHigh < NE ->
              if :: phase == HOLDING -> cancelled[g] = holdFor[g]; end_plan(g) :: else fi;
              begin_flush(g) }
  :: atomic { phase == ASKING && told[g] ->
       if OF(1) OF(2) OF(3) OF(4) OF(5) OF(6) OF(7) fi;
#if FAILS
       if :: fails = NO :: fails = 0 :: fails = NS - 1 fi;
#endif
#if PLANS & 2
       d_step { part_with_leavers(g) };
#endif
       if
       :: who == 0 -> d_step { witness = 0; fails = NO }     /* nobody who may go on */
#ifdef MUT_SAID_BEFORE_WRITTEN
       :: who != 0 -> d_step { decide(g, fails); install_all(g); end_flush(g); phase = OVER;
                         who = 0; witness = 0; fails = NO }
#endif
       :: who != 0 ->
          d_step {
            if
            :: MAY_WRITE(g) -> decide(g, fails); install_all(g); write_view(g); phase = IDLE
            :: else -> phase = OVER
            fi;
            end_flush(g); tidy();
            who = 0; witness = 0; fails = NO
          }
       fi
     }
  od
}
